-- Let a route go on that its breaker or its budget holds.
--
-- $1 text  route

select public.fn_iu_route_resume($1)
