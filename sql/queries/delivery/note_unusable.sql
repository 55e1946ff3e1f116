-- Write which routes of a worker have no usable target; all others have one.
--
-- $1 text    worker
-- $2 uuid    consumer
-- $3 text[]  routes
-- $4 text[]  why
-- $5 text[]  what to do about it

select public.fn_iu_delivery_unusable($1, $2, $3, $4, $5)
