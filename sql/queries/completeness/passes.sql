-- The last completeness check of every worker, and the running one.

select v.worker_name, v.finished_at, v.checked, v.seconds, v.missing, v.accepted, v.started_at, v.checked_so_far
  from public.v_iu_completeness v
 order by v.worker_name
