-- Columns that describe the decision behind an attempt: the number of attempts it consists of, the transaction that
-- wrote it, the trace context of the producer, and for a delivery the batch that queued it and the target that was
-- called.
--
-- Routes change, so the present routes do not show how many attempts an old event must have. The decision stores that
-- number itself: an event that went to three routes has three first attempts, each with route_count 3.
--
-- Readers of attempts (the trace export) have the same problem as the cursor: neither id nor created_at is an order of
-- commits. So an attempt stores its transaction, as an event does. Only this package and IU Core write attempts, so a
-- default is enough and no trigger is needed. An attempt also stores the producer's context, because it outlives its
-- event.
--
-- needs: base (iu_route_attempt)
-- locks: ACCESS EXCLUSIVE on iu_route_attempt, for the catalogue change only: no table rewrite, no scan

-- The default is constant for existing rows (pg_current_xact_id is STABLE): to a reader, all older attempts appear to
-- be written by one transaction, that of this migration.
alter table public.iu_route_attempt
    add column route_count  smallint,
    add column xact_id      xid8  not null default pg_current_xact_id(),
    add column traceparent  text,
    add column batch_xact_id xid8,
    add column target       text;

comment on column public.iu_route_attempt.route_count is
    'Number of first attempts of which the decision about this event consists. Null: the attempt was written before '
    'they were counted, or it is a replay.';
comment on column public.iu_route_attempt.xact_id is
    'Top-level transaction that wrote the attempt; readers compare it with snapshots.';
comment on column public.iu_route_attempt.traceparent is
    'Trace context of the producer, copied from the event because the attempt outlives it. Null: there was none.';
comment on column public.iu_route_attempt.batch_xact_id is
    'Transaction of the batch that queued this delivery. Null: the batch wrote the attempt itself.';
comment on column public.iu_route_attempt.target is
    'The called target, as in "workflow crm" or "POST https://example.com". Null: nothing was called.';
