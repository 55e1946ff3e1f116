-- Ends the next deliveries of a paused route.
--
-- $1 text    route
-- $2 uuid    event, or null for all
-- $3 text    reason
-- $4 text    actor; null: the database role
-- $5 bigint  only deliveries after this id
-- $6 bigint  only deliveries up to this id
-- $7 int     maximum number

select public.fn_iu_delivery_cancel($1, $2, $3, coalesce($4, session_user), $5, $6, $7)::text
