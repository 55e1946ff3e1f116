-- The blockers, the longest first.

select v.what, v.who, v.pid, v.application, v.database, v.state, v.seconds, v.xids, v.effect
  from public.v_iu_blocker v
 order by v.what, v.seconds desc nulls last, v.who
 limit 50
