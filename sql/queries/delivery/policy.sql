-- The delivery policy of a route, with its defaults.
--
-- $1 text  route

select public.fn_iu_delivery_policy(r.delivery_policy)::text as policy, r.delivery_policy::text as set
  from public.iu_outbound_route r
 where r.route_code = $1
