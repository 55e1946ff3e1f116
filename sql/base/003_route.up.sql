-- Routes, which name the targets of events, and attempts, which record the decisions about events.
--
-- Belongs to IU Core, and to the neutral base.
-- needs: 002
-- locks: nothing that exists

create table public.iu_outbound_route (
    route_code    text         not null,
    event_domain  text         not null,
    event_type    text         not null,
    event_stream  text         not null,
    target_kind   text         not null,
    target_ref    text         not null,
    enabled       boolean      not null default false,
    dry_run       boolean      not null default true,
    fail_closed   boolean      not null default true,
    created_at    timestamptz  not null default now(),

    constraint iu_outbound_route_code_unique unique (route_code),
    constraint iu_outbound_route_target_kind_chk check (
        target_kind in ('sql_function', 'workflow', 'vector', 'report', 'directus_flow', 'external_endpoint')),
    constraint iu_outbound_route_safe_chk check (enabled = false or dry_run = true)
);

comment on table public.iu_outbound_route is
    'The target of the events of a type. New routes are disabled and dry runs.';
comment on column public.iu_outbound_route.route_code is 'Name of the route, part of every idempotency key.';
comment on column public.iu_outbound_route.event_domain is 'Domain of the events that the route selects.';
comment on column public.iu_outbound_route.event_type is 'Type of the events that the route selects.';
comment on column public.iu_outbound_route.event_stream is 'Stream of the events that the route selects.';
comment on column public.iu_outbound_route.target_kind is
    'Kind of the target: sql_function, workflow, external_endpoint, ...';
comment on column public.iu_outbound_route.target_ref is 'Name or address of the target, depending on its kind.';
comment on column public.iu_outbound_route.enabled is 'False: events of the route are recorded as skipped.';
comment on column public.iu_outbound_route.dry_run is 'True: decisions are recorded and nothing is delivered.';
comment on column public.iu_outbound_route.fail_closed is
    'True: a failure becomes a dead letter and is never treated as a success.';
comment on column public.iu_outbound_route.created_at is 'Time at which the route was registered.';
comment on constraint iu_outbound_route_code_unique on public.iu_outbound_route is 'A route code is unique.';
comment on constraint iu_outbound_route_target_kind_chk on public.iu_outbound_route is 'The target kinds that exist.';
comment on constraint iu_outbound_route_safe_chk on public.iu_outbound_route is
    'An enabled route must be a dry run, so no route can deliver.';

create table public.iu_route_attempt (
    id               bigint       generated always as identity,
    event_ref        uuid         not null,
    route_kind       text         not null,
    route_code       text         not null,
    status           text         not null,
    decision         text,
    delivered        boolean      not null default false,
    failure_code     text,
    idempotency_key  text         not null,
    attempt_no       integer      not null default 1,
    created_at       timestamptz  not null default now(),
    finished_at      timestamptz  not null default clock_timestamp(),

    constraint iu_route_attempt_pkey primary key (id),
    constraint iu_route_attempt_key_unique unique (idempotency_key, attempt_no),
    constraint iu_route_attempt_kind_chk check (route_kind in ('outbound', 'inbound')),
    constraint iu_route_attempt_status_chk check (status in ('dry_run', 'pending', 'sent', 'failed', 'skipped'))
);

comment on table public.iu_route_attempt is
    'The audit: one row for every attempt to route or deliver an event, with its result. Append-only.';
comment on column public.iu_route_attempt.id is 'Number of the attempt, in order of writing.';
comment on column public.iu_route_attempt.event_ref is
    'Id of the event. Without a foreign key: events may be deleted while their attempts are kept.';
comment on column public.iu_route_attempt.route_kind is 'Kind of the route: outbound or inbound.';
comment on column public.iu_route_attempt.route_code is 'Code of the route; (none) if no enabled route matched.';
comment on column public.iu_route_attempt.status is 'Result of the attempt: dry_run, pending, sent, failed or skipped.';
comment on column public.iu_route_attempt.decision is 'Reason for the status.';
comment on column public.iu_route_attempt.delivered is 'True: the event was delivered.';
comment on column public.iu_route_attempt.failure_code is
    'Machine-readable reason of a failure. Null: it did not fail.';
comment on column public.iu_route_attempt.idempotency_key is
    'The same for every attempt of an event and route, so a second decision is suppressed.';
comment on column public.iu_route_attempt.attempt_no is
    'Number of the attempt: 1, and one more for each repetition or replay.';
comment on column public.iu_route_attempt.created_at is
    'Start of the attempt; for a decision, start of the transaction that made it.';
comment on column public.iu_route_attempt.finished_at is
    'End of the attempt; for a decision, the time within its transaction.';
comment on constraint iu_route_attempt_pkey on public.iu_route_attempt is 'Attempts are numbered in order of writing.';
comment on constraint iu_route_attempt_key_unique on public.iu_route_attempt is
    'Each event, route and attempt number has exactly one row.';
comment on constraint iu_route_attempt_kind_chk on public.iu_route_attempt is 'The kinds of routes that exist.';
comment on constraint iu_route_attempt_status_chk on public.iu_route_attempt is 'The statuses that exist.';
