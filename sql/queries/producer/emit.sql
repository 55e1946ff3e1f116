-- Writes one event of a registered type. The parameters of the columns have the types of the columns, which differ
-- between the bases.
--
-- $1  id                    $2  domain            $3  event type         $4  type of the subject
-- $5  id of the subject     $6  address           $7  actor              $8  source system
-- $9  correlation id        $10 payload, JSON     $11 time of the event, or null for now
-- $12 trace context, or null for that of the transaction

insert into public.event_outbox
       (id, event_domain, event_type, event_stream, delivery_lane, event_severity, event_subject_table,
        event_subject_ref, canonical_address, actor_ref, source_system, correlation_id, safe_payload, occurred_at,
        traceparent)
values ($1, $2, $3,
        (select r.event_stream from public.event_type_registry r where r.event_domain = $2 and r.event_type = $3),
        (select r.delivery_lane from public.event_type_registry r where r.event_domain = $2 and r.event_type = $3),
        (select coalesce(max(r.default_severity), 'info') from public.event_type_registry r
          where r.event_domain = $2 and r.event_type = $3),
        $4, $5, $6, $7, $8, $9, $10, coalesce($11, now()),
        coalesce($12, nullif(current_setting('iu.traceparent', true), '')))
