-- Let a route deliver, or turn it back to dry run.
--
-- $1 text  route     $2 bool  whether it may deliver     $3 text  why     $4 text  who; null: the database user

select public.fn_iu_route_live($1, $2, $3, coalesce($4, session_user))::text
