-- A route, and which of the four switches are open for it; no row: there is no such route.
--
-- $1 text  route

select r.route_code, r.target_kind, r.target_ref, r.enabled and not r.dry_run as live,
       public.fn_iu_core_routes_enabled() as master, public.fn_iu_route_worker_enabled() as worker,
       public.fn_iu_delivery_enabled() as delivery,
       coalesce(r.route_code = any (public.fn_iu_delivery_list('iu_core.delivery_live_routes')), false) as listed,
       r.delivery_policy::text as policy
  from public.iu_outbound_route r
 where r.route_code = $1
