-- End the next deliveries of a route that is held.
--
-- $1 text    route
-- $2 uuid    event, or null for all
-- $3 text    why
-- $4 text    who asks; null: the database user
-- $5 bigint  after this delivery
-- $6 bigint  up to this one
-- $7 int     how many at most

select public.fn_iu_delivery_cancel($1, $2, $3, coalesce($4, session_user), $5, $6, $7)::text
