-- One route, or all routes, with their settings.
--
-- $1 text  route, or null for all

select r.route_code, r.event_domain, r.event_type, r.event_stream, r.target_kind, r.target_ref, r.enabled, r.dry_run,
       r.fail_closed
  from public.iu_outbound_route r
 where $1::text is null or r.route_code = $1
 order by r.route_code
