-- Where events go (routes) and what was decided about each (attempts).
--
-- Belongs to IU Core; this copy serves the embedded server and the tests.
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

comment on table public.iu_outbound_route is 'Where events of a type go. New routes are disabled and dry.';
comment on column public.iu_outbound_route.route_code is 'Name of the route, part of every idempotency key.';
comment on column public.iu_outbound_route.event_domain is 'Domain of the events that it takes.';
comment on column public.iu_outbound_route.event_type is 'Type of the events that it takes.';
comment on column public.iu_outbound_route.event_stream is 'Stream of the events that it takes.';
comment on column public.iu_outbound_route.target_kind is 'What kind of thing receives them.';
comment on column public.iu_outbound_route.target_ref is 'Which one of its kind.';
comment on column public.iu_outbound_route.enabled is 'False: events are audited as skipped.';
comment on column public.iu_outbound_route.dry_run is 'True: decisions are audited, nothing is delivered.';
comment on column public.iu_outbound_route.fail_closed is 'A failure becomes a dead letter, never a silent success.';
comment on column public.iu_outbound_route.created_at is 'When the route was registered.';
comment on constraint iu_outbound_route_code_unique on public.iu_outbound_route is 'A route has one name.';
comment on constraint iu_outbound_route_target_kind_chk on public.iu_outbound_route is 'The kinds that exist.';
comment on constraint iu_outbound_route_safe_chk on public.iu_outbound_route is
    'No enabled route may deliver: enabled means dry_run.';

insert into public.iu_outbound_route
    (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled, dry_run)
values
    ('iu.version_applied.workflow', 'iu', 'version_applied', 'update', 'workflow', 'event_outbox', true, true);

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
    'The audit: one row for every attempt to route an event, whatever came of it. Append-only.';
comment on column public.iu_route_attempt.id is 'Order of writing.';
comment on column public.iu_route_attempt.event_ref is 'The event. No foreign key: the log may be pruned, the audit stays.';
comment on column public.iu_route_attempt.route_kind is 'outbound or inbound.';
comment on column public.iu_route_attempt.route_code is 'The route, or (none) when no enabled route matched.';
comment on column public.iu_route_attempt.status is 'dry_run, pending, sent, failed or skipped.';
comment on column public.iu_route_attempt.decision is 'Why it has that status.';
comment on column public.iu_route_attempt.delivered is 'True only when something really left.';
comment on column public.iu_route_attempt.failure_code is 'Machine-readable reason of a failure.';
comment on column public.iu_route_attempt.idempotency_key is 'Same event and route, same key: a second decision is suppressed.';
comment on column public.iu_route_attempt.attempt_no is '1, and one more with every replay.';
comment on column public.iu_route_attempt.created_at is 'Start of the transaction that decided.';
comment on column public.iu_route_attempt.finished_at is 'When the decision was made, within that transaction.';
comment on constraint iu_route_attempt_pkey on public.iu_route_attempt is 'Order of writing.';
comment on constraint iu_route_attempt_key_unique on public.iu_route_attempt is
    'Exactly one decision per event, route and attempt.';
comment on constraint iu_route_attempt_kind_chk on public.iu_route_attempt is 'The kinds that exist.';
comment on constraint iu_route_attempt_status_chk on public.iu_route_attempt is 'The states that exist.';
