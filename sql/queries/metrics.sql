-- The figures for metrics: of a worker, and of the whole database.
--
-- $1 text  worker

select m.worker_name as worker, m.what, m.part, m.figure
  from public.fn_iu_metrics($1) m
