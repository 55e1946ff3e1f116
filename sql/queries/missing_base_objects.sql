-- Missing objects of the base: the tables, columns, functions and triggers that the package builds on.

with wanted (kind, name) as (
    values
        ('column', 'dot_config.key'), ('column', 'dot_config.value'), ('column', 'dot_config.description'),
        ('column', 'dot_config.updated_at'),
        ('column', 'event_type_registry.event_domain'), ('column', 'event_type_registry.event_type'),
        ('column', 'event_type_registry.active'),
        ('column', 'event_outbox.id'), ('column', 'event_outbox.event_domain'), ('column', 'event_outbox.event_type'),
        ('column', 'event_outbox.event_stream'), ('column', 'event_outbox.event_subject_ref'),
        ('column', 'event_outbox.safe_payload'), ('column', 'event_outbox.created_at'),
        ('column', 'iu_outbound_route.route_code'), ('column', 'iu_outbound_route.event_domain'),
        ('column', 'iu_outbound_route.event_type'), ('column', 'iu_outbound_route.event_stream'),
        ('column', 'iu_outbound_route.target_kind'), ('column', 'iu_outbound_route.target_ref'),
        ('column', 'iu_outbound_route.enabled'), ('column', 'iu_outbound_route.dry_run'),
        ('column', 'iu_route_attempt.event_ref'), ('column', 'iu_route_attempt.route_kind'),
        ('column', 'iu_route_attempt.route_code'), ('column', 'iu_route_attempt.status'),
        ('column', 'iu_route_attempt.decision'), ('column', 'iu_route_attempt.delivered'),
        ('column', 'iu_route_attempt.failure_code'), ('column', 'iu_route_attempt.idempotency_key'),
        ('column', 'iu_route_attempt.attempt_no'), ('column', 'iu_route_attempt.created_at'),
        ('function', 'fn_iu_core_routes_enabled()'),
        ('function', 'fn_iu_emit_event(text,text,uuid,text,jsonb)'),
        ('trigger', 'event_outbox.trg_event_outbox_type_validate'))
select w.kind, w.name
  from wanted w
 where case w.kind
           when 'column' then not exists (
               select from pg_attribute a
                where a.attrelid = to_regclass('public.' || split_part(w.name, '.', 1))
                  and a.attname = split_part(w.name, '.', 2) and not a.attisdropped)
           when 'function' then to_regprocedure('public.' || w.name) is null
           when 'trigger' then not exists (
               select from pg_trigger t
                where t.tgrelid = to_regclass('public.' || split_part(w.name, '.', 1))
                  and t.tgname = split_part(w.name, '.', 2))
       end
