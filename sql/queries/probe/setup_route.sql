-- Makes the seed's route an enabled dry run, and the only route for its events, for this transaction only. The neutral
-- base has neither the route nor its event type.

with type as (
    insert into public.event_type_registry (event_domain, event_type, event_stream, delivery_lane)
    values ('iu', 'version_applied', 'update', 'immediate')
    on conflict (event_domain, event_type) do nothing),
others as (
    update public.iu_outbound_route r set enabled = false
     where r.event_domain = 'iu' and r.event_type = 'version_applied' and r.enabled
       and r.route_code <> 'iu.version_applied.workflow')
insert into public.iu_outbound_route
    (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled, dry_run)
values ('iu.version_applied.workflow', 'iu', 'version_applied', 'update', 'workflow', 'event_outbox', true, true)
on conflict (route_code) do update set enabled = true, dry_run = true
