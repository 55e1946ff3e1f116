-- Creates a route as an enabled dry run, for events of a registered type. No row: the type is not registered.
--
-- $1 text  code     $2 text  domain     $3 text  event type     $4 text  target kind     $5 text  target

insert into public.iu_outbound_route
       (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled, dry_run)
select $1, t.event_domain, t.event_type, t.event_stream, $4, $5, true, true
  from public.event_type_registry t
 where t.event_domain = $2 and t.event_type = $3
returning route_code
