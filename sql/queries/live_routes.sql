-- Routes that are live, and which lock keeps each from delivering all the same; null: none does.

select r.route_code, public.fn_iu_delivery_lock(r.route_code) as lock
  from public.iu_outbound_route r
 where r.enabled and not r.dry_run
 order by r.route_code
