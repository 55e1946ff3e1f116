-- Removes a route that is a dry run or disabled, and has no deliveries. No row: it may deliver, or deliveries wait. Its
-- attempts and dead letters are kept.
--
-- $1 text  code

delete from public.iu_outbound_route r
 where r.route_code = $1 and (r.dry_run or not r.enabled)
   and not exists (select from public.iu_route_delivery d where d.route_code = r.route_code)
returning r.route_code
