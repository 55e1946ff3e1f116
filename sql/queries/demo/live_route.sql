-- A route to a coroutine, not live yet, that gives up, tries again and probes sooner than one of every day would.

insert into public.iu_outbound_route
    (route_code, event_domain, event_type, event_stream, target_kind, target_ref, delivery_policy)
values ('demo.crm', 'iu', 'version_applied', 'update', 'workflow', 'demo-crm',
        '{"attempts": 3, "backoff": 0.2, "breaker": 2, "probe_max": 0.5, "deadline": 5}')
