-- Resumes a route that is paused by its circuit breaker or its budget of dead letters.
--
-- $1 text  route

select public.fn_iu_route_resume($1)
