-- The number of attempts by route and status.

select v.route_kind, v.route_code, v.status, v.attempts, v.last_at
  from public.v_iu_route_attempt_summary v
 order by v.route_kind, v.route_code, v.status
