-- Live routes, the closed switch that keeps each from delivering (null: all are open), and whether its events are
-- queued meanwhile.

select r.route_code, public.fn_iu_delivery_closed_switch(r.route_code) as closed_switch,
       public.fn_iu_delivery_queued_routes(array[r]) <> '{}' as queued
  from public.iu_outbound_route r
 where r.enabled and not r.dry_run
 order by r.route_code
