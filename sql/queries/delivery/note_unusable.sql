-- Replaces the list of a worker's routes that have no usable target.
--
-- $1 text    worker
-- $2 uuid    consumer
-- $3 text[]  routes
-- $4 text[]  reasons
-- $5 text[]  remedies

select public.fn_iu_delivery_unusable($1, $2, $3, $4, $5)
