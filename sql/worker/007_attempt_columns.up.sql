-- What an attempt says of its decision: how many attempts that consists of, which transaction wrote it, the trace
-- context of the producer, and of a delivery which batch queued it and what it called.
--
-- Routes change, so the routes of today do not say how many attempts an event of last year must have. The decision
-- says it itself: an event that went to three routes has three first attempts, and each of them carries a 3.
--
-- Readers of the audit (the export of traces) have the cursor's problem: neither id nor created_at is an order of
-- commits. So an attempt carries its transaction, as an event does. Nobody but us and IU Core writes here, so it is a
-- default and no stamp. And it carries the producer's context, because it outlives its event.
--
-- needs: base (iu_route_attempt)
-- locks: ACCESS EXCLUSIVE on iu_route_attempt, for the catalogue change only: no table rewrite, no scan

-- The default is constant for the rows that exist (pg_current_xact_id is STABLE): to a reader, all that is older than
-- this migration looks like one transaction, this one.
alter table public.iu_route_attempt
    add column route_count  smallint,
    add column xact_id      xid8  not null default pg_current_xact_id(),
    add column traceparent  text,
    add column batch_xact_id xid8,
    add column target       text;

comment on column public.iu_route_attempt.route_count is
    'How many first attempts the decision about this event consists of. Null: written before that was counted, or a replay.';
comment on column public.iu_route_attempt.xact_id is
    'The top-level transaction that wrote it; what readers of the audit compare with snapshots.';
comment on column public.iu_route_attempt.traceparent is
    'Trace context of the producer, copied from the event, which it outlives. Null: there was none.';
comment on column public.iu_route_attempt.batch_xact_id is
    'The batch that queued this delivery, as a transaction. Null: the batch wrote the attempt itself.';
comment on column public.iu_route_attempt.target is
    'What was called, as in "workflow crm" or "POST https://example.com". Null: nothing was.';

-- Anybody may write anything into event_outbox.traceparent, and it must never be an error for him (W3C Trace Context).
create function public.fn_iu_trace_context(p_traceparent text)
returns text
language sql
immutable
parallel safe
return case when length(p_traceparent) = 55
             and p_traceparent ~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$'
            then p_traceparent end;
comment on function public.fn_iu_trace_context(text) is
    'The trace context, if it is a valid one of W3C version 00; else null. Malformed context is no error.';
