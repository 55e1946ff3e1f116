-- Columns of the base (IU Core) with a type that the package cannot work with: the actual type, and the allowed types.
-- A domain counts as its base type. char(n) is not allowed, because its blanks make two equal values differ.

with wanted (names, types) as (
    values
        ('dot_config.key dot_config.value event_type_registry.event_domain event_type_registry.event_type '
         'event_outbox.event_domain event_outbox.event_type event_outbox.event_stream event_outbox.event_subject_table '
         'event_outbox.canonical_address event_outbox.actor_ref event_outbox.source_system '
         'iu_outbound_route.route_code iu_outbound_route.event_domain iu_outbound_route.event_type '
         'iu_outbound_route.event_stream iu_outbound_route.target_kind iu_outbound_route.target_ref '
         'iu_route_attempt.route_kind iu_route_attempt.route_code iu_route_attempt.status iu_route_attempt.decision '
         'iu_route_attempt.failure_code iu_route_attempt.idempotency_key', array['text', 'varchar']),
        ('event_outbox.correlation_id event_outbox.event_subject_ref', array['text', 'varchar', 'uuid']),
        ('event_outbox.id iu_route_attempt.event_ref', array['uuid']),
        ('event_outbox.safe_payload', array['jsonb', 'json']),
        ('event_outbox.occurred_at event_outbox.created_at dot_config.updated_at iu_route_attempt.created_at '
         'iu_route_attempt.finished_at', array['timestamptz', 'timestamp']),
        ('event_type_registry.active iu_outbound_route.enabled iu_outbound_route.dry_run iu_route_attempt.delivered',
         array['bool']),
        ('iu_route_attempt.attempt_no', array['int4', 'int8']))
select c.name, format_type(a.atttypid, a.atttypmod) as type,
       array_to_string(array(select format_type(to_regtype('pg_catalog.' || k.type), null)
                               from unnest(w.types) k(type)), ' or ') as wanted
  from wanted w
 cross join lateral regexp_split_to_table(w.names, ' ') c(name)
  join pg_attribute a
    on a.attrelid = to_regclass('public.' || split_part(c.name, '.', 1))
   and a.attname = split_part(c.name, '.', 2) and not a.attisdropped
  join pg_type t on t.oid = a.atttypid
  left join pg_type b on b.oid = t.typbasetype
 where coalesce(b.typname, t.typname) <> all (w.types::name[])
 order by c.name
