-- The event domain of a worker; no row: the worker is not registered.
--
-- $1 text  worker

select c.event_domain from public.iu_route_worker_cursor c where c.worker_name = $1
