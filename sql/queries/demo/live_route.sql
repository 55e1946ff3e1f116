-- A route to a coroutine that is not live yet, with a retry policy and a circuit breaker that are faster than the
-- defaults.

insert into public.iu_outbound_route
    (route_code, event_domain, event_type, event_stream, target_kind, target_ref, delivery_policy)
values ('demo.crm', 'iu', 'version_applied', 'update', 'workflow', 'demo-crm',
        '{"attempts": 3, "backoff": 0.2, "breaker": 2, "trial_interval_max": 0.5, "deadline": 5}')
