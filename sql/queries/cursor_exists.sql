-- Whether a worker is registered.
--
-- $1 text  worker

select exists (select from public.iu_route_worker_cursor w where w.worker_name = $1)
