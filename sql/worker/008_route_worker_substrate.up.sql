-- The two tables of the route worker: where it is (cursor) and what it could not do (dead letters).
--
-- needs: 005
-- locks: nothing that exists

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
-- The row is updated by every batch; room on the page keeps those updates HOT.
with (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

comment on table public.iu_route_worker_cursor is
    'How far each worker has read event_outbox. One row a worker; fresh means that nothing was read yet.';
comment on column public.iu_route_worker_cursor.worker_name is 'Name of the worker.';
comment on column public.iu_route_worker_cursor.event_domain is 'Domain of the events that it reads.';
comment on column public.iu_route_worker_cursor.last_created_at is
    'High-water mark for people: the highest created_at among the last events of all pages. Null: fresh.';
comment on column public.iu_route_worker_cursor.last_event_id is 'High-water mark for people: that event''s id. Null: fresh.';
comment on column public.iu_route_worker_cursor.lineage is 'The history in which this cursor was written (iu_outbox_anchor).';
comment on column public.iu_route_worker_cursor.prev is 'Every event visible in this snapshot has been consumed.';
comment on column public.iu_route_worker_cursor.tick is 'While a tick is partly consumed: its snapshot.';
comment on column public.iu_route_worker_cursor.tick_floor is
    'While a tick is partly consumed: the lowest event_seq among its events of transactions that began after prev.';
comment on column public.iu_route_worker_cursor.pos_seq is 'While a tick is partly consumed: event_seq of the last event done.';
comment on column public.iu_route_worker_cursor.pos_id is 'While a tick is partly consumed: id of the last event done.';
comment on column public.iu_route_worker_cursor.own_xid is
    'A transaction that ran the worker and had written events itself: they were consumed before it ended.';
comment on column public.iu_route_worker_cursor.own_seq is 'Its events up to this event_seq are consumed.';
comment on column public.iu_route_worker_cursor.hi_seq is
    'Last value of event_outbox_event_seq just after the newest tick was taken; an event above it is unread in any history.';
comment on column public.iu_route_worker_cursor.fresh_seq is
    'hi_seq before the newest tick: nobody had read an event above it when that was taken. Null: that is not known.';
comment on column public.iu_route_worker_cursor.queued_id is
    'The last delivery that it has queued (iu_route_delivery.id): a snapshot that shows it shows all before it. Null: none.';
comment on column public.iu_route_worker_cursor.total_seen is 'Events read since the row was made.';
comment on column public.iu_route_worker_cursor.total_attempts is 'Attempts written since the row was made.';
comment on column public.iu_route_worker_cursor.total_skipped is 'Of these, skipped.';
comment on column public.iu_route_worker_cursor.total_dead_lettered is 'Dead letters written since the row was made.';
comment on column public.iu_route_worker_cursor.last_run_at is 'End of the last run that took the row.';
comment on column public.iu_route_worker_cursor.last_run_summary is 'What that run answered.';
comment on column public.iu_route_worker_cursor.page_limit is
    'Most events of the next page, because a batch took too long. Null: as many as the caller asks for.';
comment on column public.iu_route_worker_cursor.failures is
    'Weight of the batches that failed at this position, in a row: 1 for an error, 3 for one that ran out of time. 0: none.';
comment on column public.iu_route_worker_cursor.failed_at is 'When a batch last failed. Null: none did.';
comment on column public.iu_route_worker_cursor.failed_why is 'Why it failed.';
comment on column public.iu_route_worker_cursor.failed_events is
    'One of the next so many events made it fail: the next page takes half of them. Null: that is not known.';
comment on column public.iu_route_worker_cursor.failed_event is
    'The event that made it fail: its batch takes it alone. Null: that is not known.';
comment on column public.iu_route_worker_cursor.failed_route is
    'The route whose SQL function raised. Null: that is not known, or another statement failed.';
comment on column public.iu_route_worker_cursor.created_at is 'When the worker was registered.';
comment on constraint iu_route_worker_cursor_pkey on public.iu_route_worker_cursor is 'One cursor a worker.';
comment on constraint iu_route_worker_cursor_page_chk on public.iu_route_worker_cursor is
    'A position exists only inside a tick.';
comment on constraint iu_route_worker_cursor_own_chk on public.iu_route_worker_cursor is
    'Own transaction and own position come together.';

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
    created_at       timestamptz  not null default clock_timestamp(),
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
    'Events that could not be routed, whole, so that a replay reads nothing else. Resolved, never deleted.';
comment on column public.iu_route_dead_letter.id is 'Identity of the dead letter.';
comment on column public.iu_route_dead_letter.worker_name is 'The worker that gave up.';
comment on column public.iu_route_dead_letter.event_ref is 'The event.';
comment on column public.iu_route_dead_letter.route_kind is 'outbound or inbound.';
comment on column public.iu_route_dead_letter.route_code is 'The route, or (none) when no enabled route matched.';
comment on column public.iu_route_dead_letter.idempotency_key is 'Key of its attempts; one dead letter each.';
comment on column public.iu_route_dead_letter.attempt_no is
    'Number of the last attempt made for it. 0: not even its failure could be written to the audit.';
comment on column public.iu_route_dead_letter.event_snapshot is 'The whole event as it was.';
comment on column public.iu_route_dead_letter.failure_code is 'Machine-readable reason.';
comment on column public.iu_route_dead_letter.failure_detail is 'SQLSTATE and message of what went wrong.';
comment on column public.iu_route_dead_letter.created_at is 'When it was given up.';
comment on column public.iu_route_dead_letter.replay_count is 'How many replays were tried.';
comment on column public.iu_route_dead_letter.last_replay_at is 'When the last replay was tried.';
comment on column public.iu_route_dead_letter.resolved_at is 'When it was resolved. Null: open.';
comment on column public.iu_route_dead_letter.resolution is 'How it was resolved.';
comment on column public.iu_route_dead_letter.xact_id is 'The top-level transaction that wrote it; what readers compare with snapshots.';
comment on constraint iu_route_dead_letter_pkey on public.iu_route_dead_letter is 'Identity of the dead letter.';
comment on constraint iu_route_dead_letter_key_unique on public.iu_route_dead_letter is 'One dead letter per event and route.';
comment on constraint iu_route_dead_letter_resolved_chk on public.iu_route_dead_letter is
    'Resolved means: when, and how.';
