-- The position of the probe's cursor.
--
-- $1 text  worker

select w.last_event_id, w.last_created_at from public.iu_route_worker_cursor w where w.worker_name = $1
