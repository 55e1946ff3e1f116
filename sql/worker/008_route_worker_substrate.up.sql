-- The two tables of the worker: its position (cursor) and the events that it gave up (dead letters).
--
-- needs: 005
-- locks: nothing that other sessions use

create table public.iu_route_worker_cursor (
    worker_name          text         not null,
    event_domain         text         not null,
    last_created_at      timestamptz,
    last_event_id        uuid,
    lineage              uuid         not null,
    prev                 pg_snapshot  not null default '3:3:',
    tick                 pg_snapshot,
    tick_floor           bigint,
    pos_seq              bigint,
    pos_id               uuid,
    own_xid              xid8,
    own_seq              bigint,
    hi_seq               bigint       not null default 0,
    fresh_seq            bigint,
    queued_id            bigint,
    total_seen           bigint       not null default 0,
    total_attempts       bigint       not null default 0,
    total_skipped        bigint       not null default 0,
    total_dead_lettered  bigint       not null default 0,
    last_run_at          timestamptz,
    last_run_summary     jsonb,
    page_limit           integer,
    failures             integer      not null default 0,
    failed_at            timestamptz,
    failed_why           text,
    failed_events        integer,
    failed_event         uuid,
    failed_route         text,
    created_at           timestamptz  not null default now(),

    constraint iu_route_worker_cursor_pkey primary key (worker_name),
    constraint iu_route_worker_cursor_page_chk check (
        (pos_seq is null) = (pos_id is null) and (tick is not null or (pos_seq is null and tick_floor is null))),
    constraint iu_route_worker_cursor_own_chk check ((own_xid is null) = (own_seq is null))
)
-- Every batch updates the row; free space in the block keeps those updates HOT.
with (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

comment on table public.iu_route_worker_cursor is
    'The position up to which each worker has read event_outbox. One row for each worker; "fresh" means that nothing '
    'was read yet.';
comment on column public.iu_route_worker_cursor.worker_name is 'Name of the worker.';
comment on column public.iu_route_worker_cursor.event_domain is 'Domain of the events that the worker reads.';
comment on column public.iu_route_worker_cursor.last_created_at is
    'For information only: the highest created_at among the last events of all pages. Null: fresh.';
comment on column public.iu_route_worker_cursor.last_event_id is
    'For information only: id of the event with last_created_at. Null: fresh.';
comment on column public.iu_route_worker_cursor.lineage is
    'The history in which this cursor was written (iu_outbox_anchor.lineage).';
comment on column public.iu_route_worker_cursor.prev is 'Snapshot: every event that is visible in it is consumed.';
comment on column public.iu_route_worker_cursor.tick is
    'Snapshot of the tick that is partly consumed. Null: no tick is.';
comment on column public.iu_route_worker_cursor.tick_floor is
    'Lowest event_seq among those events of the partly consumed tick whose transactions began after prev. Null: there '
    'is none.';
comment on column public.iu_route_worker_cursor.pos_seq is
    'event_seq of the last consumed event of the partly consumed tick. Null: there is none.';
comment on column public.iu_route_worker_cursor.pos_id is
    'Id of the last consumed event of the partly consumed tick. Null: there is none.';
comment on column public.iu_route_worker_cursor.own_xid is
    'A transaction that wrote events and then ran the worker itself, which consumed these events before the commit. '
    'Null: there is none.';
comment on column public.iu_route_worker_cursor.own_seq is
    'The events of own_xid up to this event_seq are consumed. Null: own_xid is null.';
comment on column public.iu_route_worker_cursor.hi_seq is
    'Last value of event_outbox_event_seq just after the newest tick was taken. An event above it is unread in any '
    'history.';
comment on column public.iu_route_worker_cursor.fresh_seq is
    'hi_seq before the newest tick: no worker had read an event above it when that tick was taken. Null: unknown.';
comment on column public.iu_route_worker_cursor.queued_id is
    'The last delivery that the worker has queued (iu_route_delivery.id): a snapshot that shows it shows all '
    'deliveries before it. Null: none.';
comment on column public.iu_route_worker_cursor.total_seen is 'Events read since the row was created.';
comment on column public.iu_route_worker_cursor.total_attempts is
    'Attempts written by batches since the row was created.';
comment on column public.iu_route_worker_cursor.total_skipped is
    'Attempts with the status skipped, of those in total_attempts.';
comment on column public.iu_route_worker_cursor.total_dead_lettered is
    'Dead letters written by batches since the row was created.';
comment on column public.iu_route_worker_cursor.last_run_at is
    'End of the last batch that locked the row. Null: there was none.';
comment on column public.iu_route_worker_cursor.last_run_summary is
    'Answer of the last batch that locked the row. Null: there was none.';
comment on column public.iu_route_worker_cursor.page_limit is
    'Maximum number of events of the next page, because a batch took too long. Null: as many as the caller asks for.';
comment on column public.iu_route_worker_cursor.failures is
    'Weight of the consecutive failed batches at this position: 1 for an error, 3 for a time-out. 0: none.';
comment on column public.iu_route_worker_cursor.failed_at is 'Time of the last failed batch. Null: none has failed.';
comment on column public.iu_route_worker_cursor.failed_why is 'Error of the last failed batch. Null: none has failed.';
comment on column public.iu_route_worker_cursor.failed_events is
    'The batch failed because of one of the next failed_events events: the next page takes half of them. Null: '
    'unknown.';
comment on column public.iu_route_worker_cursor.failed_event is
    'The event that made the batch fail: a batch takes it alone. Null: unknown.';
comment on column public.iu_route_worker_cursor.failed_route is
    'The route whose SQL function raised the error. Null: unknown, or another statement failed.';
comment on column public.iu_route_worker_cursor.created_at is 'Time at which the worker was registered.';
comment on constraint iu_route_worker_cursor_pkey on public.iu_route_worker_cursor is 'A worker has one cursor.';
comment on constraint iu_route_worker_cursor_page_chk on public.iu_route_worker_cursor is
    'A position exists only inside a tick.';
comment on constraint iu_route_worker_cursor_own_chk on public.iu_route_worker_cursor is
    'own_xid and own_seq are set together.';

create table public.iu_route_dead_letter (
    id               uuid         not null default gen_random_uuid(),
    worker_name      text         not null,
    event_ref        uuid         not null,
    route_kind       text         not null default 'outbound',
    route_code       text         not null,
    idempotency_key  text         not null,
    attempt_no       integer      not null default 1,
    event_snapshot   jsonb        not null,
    failure_code     text         not null,
    failure_detail   text,
    created_at       timestamptz  not null default now(),
    replay_count     integer      not null default 0,
    last_replay_at   timestamptz,
    resolved_at      timestamptz,
    resolution       text,
    xact_id          xid8         not null default pg_current_xact_id(),

    constraint iu_route_dead_letter_pkey primary key (id),
    constraint iu_route_dead_letter_key_unique unique (idempotency_key),
    constraint iu_route_dead_letter_resolved_chk check ((resolved_at is null) = (resolution is null))
);

comment on table public.iu_route_dead_letter is
    'Events that a route gave up, each with a snapshot, so that a replay needs nothing else. Resolved dead letters '
    'are kept until retention deletes them.';
comment on column public.iu_route_dead_letter.id is 'Identity of the dead letter.';
comment on column public.iu_route_dead_letter.worker_name is 'Name of the worker that gave the event up.';
comment on column public.iu_route_dead_letter.event_ref is
    'Id of the event. The event may have been deleted from the outbox.';
comment on column public.iu_route_dead_letter.route_kind is 'Kind of the route: outbound or inbound.';
comment on column public.iu_route_dead_letter.route_code is 'Code of the route; (none) if no enabled route matched.';
comment on column public.iu_route_dead_letter.idempotency_key is
    'Idempotency key of its attempts. A key has one dead letter.';
comment on column public.iu_route_dead_letter.attempt_no is
    'Number of its last attempt. 0: not even the failed attempt could be written.';
comment on column public.iu_route_dead_letter.event_snapshot is
    'The whole event at the time of the failure. An event that is too large keeps only its identifying columns, and '
    'too_large.';
comment on column public.iu_route_dead_letter.failure_code is 'Machine-readable reason of the failure.';
comment on column public.iu_route_dead_letter.failure_detail is
    'Description of the failure, for example SQLSTATE and message.';
comment on column public.iu_route_dead_letter.created_at is
    'Time at which the event was given up. It orders the dead letters of one transaction as well.';
comment on column public.iu_route_dead_letter.replay_count is 'Number of replays that were requested.';
comment on column public.iu_route_dead_letter.last_replay_at is 'Time of the last replay. Null: there was none.';
comment on column public.iu_route_dead_letter.resolved_at is 'Time at which it was resolved. Null: it is open.';
comment on column public.iu_route_dead_letter.resolution is
    'How the dead letter was resolved, with the actor. Null: it is open.';
comment on column public.iu_route_dead_letter.xact_id is
    'Top-level transaction that inserted the dead letter; readers compare it with snapshots.';
comment on constraint iu_route_dead_letter_pkey on public.iu_route_dead_letter is 'Identity of the dead letter.';
comment on constraint iu_route_dead_letter_key_unique on public.iu_route_dead_letter is
    'An event has one dead letter for each route.';
comment on constraint iu_route_dead_letter_resolved_chk on public.iu_route_dead_letter is
    'resolved_at and resolution are set together.';
