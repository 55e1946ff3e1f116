-- The trace id and the span ids of events, attempts and dead letters.
--
-- kind: repeatable
-- needs: nothing
-- locks: nothing that other sessions use

-- Any producer may write any text into event_outbox.traceparent; malformed text must not cause an error (W3C Trace
-- Context).
create or replace function public.fn_iu_trace_context(p_traceparent text)
returns text
language sql
immutable
parallel safe
return case when length(p_traceparent) = 55
             and p_traceparent ~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$'
            then p_traceparent end;
comment on function public.fn_iu_trace_context(text) is
    'The trace context, if it is valid in W3C version 00; otherwise null. A malformed context is not an error.';

-- Identity -----------------------------------------------------------------------------------------------
--
-- The ids are a pure function of the row, both here and in Python (iu_listen/model/trace.py; a test compares the two).
-- So trace and row are related without a stored column, and a repeated export repeats the same spans:
--
--   trace id   that of the producer's W3C trace context if it is valid; otherwise the event's UUID without dashes
--   span id    the first 8 bytes of SHA-256 of the kind and the key of the row, as in
--              'attempt outbound:iu.version_applied.workflow:<event> 1', the same with 'call', 'dead_letter <id>',
--              'event <id>'
--
-- An id of only zeros is invalid (W3C Trace Context, 3.2.2.3) and is replaced by an id of only ones.
create or replace function public.fn_iu_trace_id(p_event_ref uuid, p_traceparent text)
returns text
language sql
immutable
parallel safe
return coalesce(substr(public.fn_iu_trace_context(p_traceparent), 4, 32),
                nullif(replace(p_event_ref::text, '-', ''), repeat('0', 32)), repeat('f', 32));
comment on function public.fn_iu_trace_id(uuid, text) is
    'Trace id of an event, in hexadecimal: that of its producer, otherwise its own id without dashes.';

create or replace function public.fn_iu_span_id(p_what text, p_key text)
returns text
language sql
stable
parallel safe
return coalesce(nullif(encode(substr(sha256(convert_to(p_what || ' ' || p_key, 'UTF8')), 1, 8), 'hex'), repeat('0', 16)),
                repeat('f', 16));
comment on function public.fn_iu_span_id(text, text) is
    'Span id, in hexadecimal, of an attempt or its call (key: idempotency key, space, number), of a dead letter (key: '
    'id) or of an event (key: id).';
