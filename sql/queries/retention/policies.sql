-- Every retention policy, in the order of a run; idle: enabled, and no run for two days.

select p.what, p.keep::text as keep, p.enabled, p.updated_at, p.last_run_at, p.last_gone, p.total_gone,
       p.enabled and greatest(p.updated_at, p.last_run_at) < now() - interval '2 days' as idle
  from public.iu_retention_policy p
 order by array_position(array['events', 'attempts', 'dead_letters'], p.what)
