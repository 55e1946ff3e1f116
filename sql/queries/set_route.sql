-- Enables or disables a route. The safety check decides whether this is allowed.
--
-- $1 text  route     $2 bool  enabled

update public.iu_outbound_route r set enabled = $2 where r.route_code = $1
returning r.route_code, r.enabled, r.dry_run
