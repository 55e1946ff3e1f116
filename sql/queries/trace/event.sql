-- The data for the span of an event without attempts; no row: the event was deleted, or never existed.
--
-- $1 uuid  event

select o.id as event_ref, public.fn_iu_trace_context(o.traceparent) as traceparent,
       greatest('epoch', least(o.created_at, now())) as event_at, public.fn_iu_trace_commit_at(o.xact_id) as commit_at,
       clock_timestamp() as finished_at,
       o.event_domain, o.event_type, coalesce(o.event_subject_ref::text, o.canonical_address) as subject,
       o.correlation_id
  from public.event_outbox o
 where o.id = $1
