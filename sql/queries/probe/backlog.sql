-- What the probe's cursor has not read yet, from the view.
--
-- $1 text  worker

select v.backlog from public.v_iu_event_backlog v where v.worker_name = $1
