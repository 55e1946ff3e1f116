-- The health of a worker.
--
-- $1 text  worker

select public.fn_iu_route_worker_health($1)::text
