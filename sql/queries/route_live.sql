-- Makes a route live, or turns it back to dry run.
--
-- $1 text  route     $2 bool  true: live     $3 text  reason     $4 text  actor; null: the database role

select public.fn_iu_route_live($1, $2, $3, coalesce($4, session_user))::text
