-- The backlog of the probe's cursor, from the view.
--
-- $1 text  worker

select v.backlog from public.v_iu_event_backlog v where v.worker_name = $1
