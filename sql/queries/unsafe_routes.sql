-- Routes that could deliver: enabled, and not a dry run.

select r.route_code from public.iu_outbound_route r where r.enabled and not r.dry_run order by r.route_code
