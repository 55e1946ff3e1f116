-- Writes events of registered types, in the order of an array. jsonb_populate_recordset gives each value the type of its
-- column, which differs between the bases. The parameter is a text, because programs may change how their driver
-- writes jsonb.
--
-- $1 text  JSON array of objects with columns of event_outbox as keys. A missing key is null; then occurred_at is now,
--          and traceparent is that of the transaction.

insert into public.event_outbox
       (id, event_domain, event_type, event_stream, delivery_lane, event_severity, event_subject_table,
        event_subject_ref, canonical_address, actor_ref, source_system, correlation_id, safe_payload, occurred_at,
        traceparent)
select e.id, e.event_domain, e.event_type,
       (select r.event_stream from public.event_type_registry r
         where r.event_domain = e.event_domain and r.event_type = e.event_type),
       (select r.delivery_lane from public.event_type_registry r
         where r.event_domain = e.event_domain and r.event_type = e.event_type),
       (select coalesce(max(r.default_severity), 'info') from public.event_type_registry r
         where r.event_domain = e.event_domain and r.event_type = e.event_type),
       e.event_subject_table, e.event_subject_ref, e.canonical_address, e.actor_ref, e.source_system, e.correlation_id,
       e.safe_payload, coalesce(e.occurred_at, now()),
       coalesce(e.traceparent, nullif(current_setting('iu.traceparent', true), ''))
  from jsonb_populate_recordset(null::public.event_outbox, $1::text::jsonb) with ordinality e
 order by e.ordinality
