-- Routes that deliver or have pending deliveries, and why each is paused.

select v.route_code, v.target_kind, v.target_ref, v.pending, v.retrying, v.since, v.paused_by, v.why, v.hint,
       v.opened_at, v.stopped_at
  from public.v_iu_delivery v
 order by v.route_code
