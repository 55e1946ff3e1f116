-- The types of the values that the steps of a batch (functions/routing) and of health (functions/health) pass on.
--
-- needs: 008
-- locks: nothing that other sessions use

create type public.iu_batch_routes as (
    routes     public.iu_outbound_route[],
    live       text[],
    live_kinds text[],
    counts     jsonb,
    fan_out    bigint,
    shared     boolean,
    queues     jsonb
);
comment on type public.iu_batch_routes is
    'The routes of one domain, as a batch read them when it began. A kind is a stream and a type, with a space between.';
comment on column public.iu_batch_routes.routes is 'All routes of the domain, also disabled ones.';
comment on column public.iu_batch_routes.live is 'Codes of the live routes; null: none.';
comment on column public.iu_batch_routes.live_kinds is
    'Kinds of events whose enabled routes are all live, so that no dry run has to be recorded; null: none.';
comment on column public.iu_batch_routes.counts is
    'The number of enabled routes that share the kind of a route, by route code; a missing route has 1.';
comment on column public.iu_batch_routes.fan_out is 'The largest number of enabled routes of one kind.';
comment on column public.iu_batch_routes.shared is 'Whether other workers read the domain as well.';
comment on column public.iu_batch_routes.queues is
    'The live routes whose events are queued for delivery, each with the closed switch that pauses it, or null.';

create type public.iu_batch_range as (
    tick       pg_snapshot,
    hi_seq     bigint,
    tick_floor bigint,
    ended      xid8[],
    from_xid   xid8,
    to_xid     xid8,
    open       xid8[],
    after_seq  bigint,
    after_id   uuid,
    low_seq    bigint,
    low_id     uuid
);
comment on type public.iu_batch_range is 'The range of events that one pass of a batch reads. docs/why/cursor.md has the proof.';
comment on column public.iu_batch_range.tick is 'The tick that is being consumed.';
comment on column public.iu_batch_range.hi_seq is 'No event that is visible in the tick has a higher event_seq.';
comment on column public.iu_batch_range.tick_floor is 'The lowest event_seq of the transactions from from_xid on; null: none.';
comment on column public.iu_batch_range.ended is
    'The transactions that were in progress in prev and have ended since; their events are read by transaction.';
comment on column public.iu_batch_range.from_xid is 'The first transaction whose events are read by event_seq; null: none are.';
comment on column public.iu_batch_range.to_xid is 'The first transaction that is beyond the tick.';
comment on column public.iu_batch_range.open is 'The transactions that are in progress in the tick.';
comment on column public.iu_batch_range.after_seq is 'Events of ended transactions are read after this event_seq.';
comment on column public.iu_batch_range.after_id is 'Events of ended transactions are read after this id, at the same event_seq.';
comment on column public.iu_batch_range.low_seq is 'All other events are read after this event_seq.';
comment on column public.iu_batch_range.low_id is 'All other events are read after this id, at the same event_seq.';

create type public.iu_batch_page as (
    ids      uuid[],
    types    text[],
    streams  text[],
    seqs     bigint[],
    contexts text[],
    created  timestamptz[],
    size     integer,
    kinds    text[],
    is_full  boolean
);
comment on type public.iu_batch_page is 'The events of a page, in order: one array for each column that routing needs.';
comment on column public.iu_batch_page.ids is 'event_outbox.id of each event; all arrays are null if the page is empty.';
comment on column public.iu_batch_page.types is 'event_type of each event.';
comment on column public.iu_batch_page.streams is 'event_stream of each event.';
comment on column public.iu_batch_page.seqs is 'event_seq of each event.';
comment on column public.iu_batch_page.contexts is 'The valid traceparent of each event, or null.';
comment on column public.iu_batch_page.created is 'created_at of each event.';
comment on column public.iu_batch_page.size is 'The number of events.';
comment on column public.iu_batch_page.is_full is 'Whether its range may have more events.';
comment on column public.iu_batch_page.kinds is
    'The kind of each event; null if there is no kind whose routes are all live.';

create type public.iu_batch_result as (
    seen          bigint,
    attempts      bigint,
    skipped       bigint,
    delivered     bigint,
    queued        bigint,
    dead          bigint,
    queued_id     bigint,
    failed_ids    uuid[],
    failed_routes text[],
    failed_whys   text[]
);
comment on type public.iu_batch_result is 'What a batch has done so far. Each step adds to it.';
comment on column public.iu_batch_result.seen is 'Events read.';
comment on column public.iu_batch_result.attempts is 'Attempts written.';
comment on column public.iu_batch_result.skipped is 'Attempts written with the status skipped.';
comment on column public.iu_batch_result.delivered is 'Attempts written whose event was delivered.';
comment on column public.iu_batch_result.queued is 'Deliveries queued.';
comment on column public.iu_batch_result.dead is 'Dead letters written.';
comment on column public.iu_batch_result.queued_id is 'The id of the newest delivery of the worker''s routes; null: none yet.';
comment on column public.iu_batch_result.failed_ids is
    'Events that failed and have no dead letter yet; null: none. One element for each event and route.';
comment on column public.iu_batch_result.failed_routes is 'The routes on which these events failed.';
comment on column public.iu_batch_result.failed_whys is 'The errors of these events.';

create type public.iu_health_facts as (
    master_open     boolean,
    gate_open       boolean,
    refusal         text,
    state           text,
    state_detail    text,
    polling_why     text,
    beat_at         timestamptz,
    cadence_seconds double precision,
    standbys        bigint,
    lease_detail    text,
    seen_at         timestamptz,
    silent_seconds  double precision,
    unrun_seconds   double precision,
    backlog         bigint,
    oldest_at       timestamptz,
    waiting_seconds double precision,
    dead_letters    bigint,
    missing         bigint
);
comment on type public.iu_health_facts is 'The facts about a worker by which its health is judged.';
comment on column public.iu_health_facts.master_open is 'Whether the master gate is open.';
comment on column public.iu_health_facts.gate_open is 'Whether the worker gate is open.';
comment on column public.iu_health_facts.refusal is 'Why the worker does not believe its cursor; null: it does.';
comment on column public.iu_health_facts.state is 'The state of the consumer that wrote the last heartbeat; null: no consumer.';
comment on column public.iu_health_facts.state_detail is 'The reason that the consumer gave for its state.';
comment on column public.iu_health_facts.polling_why is 'Why the consumer works without a bell; null: it has one.';
comment on column public.iu_health_facts.beat_at is 'The last heartbeat of a consumer that works.';
comment on column public.iu_health_facts.cadence_seconds is 'The interval of the heartbeats of this consumer.';
comment on column public.iu_health_facts.standbys is 'The number of standbys that were seen within three of their intervals.';
comment on column public.iu_health_facts.lease_detail is 'The lease holder, as a standby named it.';
comment on column public.iu_health_facts.seen_at is 'The last heartbeat or the last run, whichever is later.';
comment on column public.iu_health_facts.silent_seconds is
    'Seconds since the last heartbeat, the last run, or the last change of the worker gate; null: no time is known.';
comment on column public.iu_health_facts.unrun_seconds is
    'Seconds since the last run, or the last change of the worker gate; null: no time is known.';
comment on column public.iu_health_facts.backlog is 'The number of events that wait.';
comment on column public.iu_health_facts.oldest_at is 'created_at of the oldest event that waits.';
comment on column public.iu_health_facts.waiting_seconds is 'The age of the oldest event that waits, in seconds.';
comment on column public.iu_health_facts.dead_letters is 'The number of open dead letters.';
comment on column public.iu_health_facts.missing is 'The number of events that the completeness check misses.';
