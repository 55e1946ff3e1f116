-- The tables of deliveries: the switches and the record of their changes, pending deliveries, the delivery lease and
-- the circuit breaker; and the triggers that replace the safety check of routes.
--
-- needs: functions/delivery_guards
-- locks: iu_outbound_route exclusively, dot_config against producers, briefly, to create a trigger and a check

-- Switches -----------------------------------------------------------------------------------------------
--
-- The meaning of the settings is described in functions/delivery_switches.

insert into public.dot_config (key, value, description) values
    ('iu_core.delivery_enabled', 'false',
     'The delivery gate. Routes deliver only while it is exactly ''true''.'),
    ('iu_core.delivery_live_routes', '',
     'The list of live routes: codes, separated by commas. A route that is removed from it becomes a dry run again.'),
    ('iu_core.delivery_sql_functions', '',
     'The SQL functions that routes may call: schema.name, separated by commas.'),
    ('iu_core.delivery_schemes', '',
     'Schemes of addresses for which an installed package has a target, besides the built-in ones; separated by commas.');

-- The history of which routes may deliver, with the reasons. The guards write it, so no change can bypass it.
create table public.iu_delivery_change (
    id          bigint       generated always as identity,
    route_code  text         not null,
    live        boolean      not null,
    actor       text         not null default session_user,
    login       text         not null default session_user,
    why         text,
    created_at  timestamptz  not null default clock_timestamp(),

    constraint iu_delivery_change_pkey primary key (id)
);
comment on table public.iu_delivery_change is 'Each change of a route to live or back to dry run. Append-only.';
comment on column public.iu_delivery_change.id is 'Number of the change, in order of writing.';
comment on column public.iu_delivery_change.route_code is 'Code of the route.';
comment on column public.iu_delivery_change.live is
    'True: the route may deliver from this change on. False: it may no longer deliver.';
comment on column public.iu_delivery_change.actor is
    'The name given in the setting iu.actor of the session; otherwise the role of the session.';
comment on column public.iu_delivery_change.login is
    'The role of the session (session_user). No role has the right to write this column.';
comment on column public.iu_delivery_change.why is
    'The reason given in the setting iu.why of the session. Null: none was given.';
comment on column public.iu_delivery_change.created_at is 'Time of the change.';
comment on constraint iu_delivery_change_pkey on public.iu_delivery_change is 'Each change has a number.';

-- Deliveries ---------------------------------------------------------------------------------------------
--
-- Deliveries that cannot be made in the transaction of the batch wait in this table: the batch inserts them, the holder
-- of the worker's delivery lease delivers them, and the last attempt deletes the row. For the completeness check,
-- for retention and for reading an event a second time, a row proves the decision about its event, as an attempt does.
--
-- The table holds two lists. Rows that were never attempted have no due_at and are read by id, from a position that
-- only goes forward, so rows deleted before it are not read again, however long vacuum is delayed. The other rows are
-- few, and are read by due_at. Replays may be many; one that waits for its subject has due_at = infinity, so it is not
-- read until it may go on.
create table public.iu_route_delivery (
    route_code      text         not null,
    id              bigint       generated always as identity,
    worker_name     text         not null,
    event_ref       uuid         not null,
    route_kind      text         not null default 'outbound',
    subject_key     bigint,
    attempt_no      integer      not null default 1,
    tries           integer      not null default 0,
    route_count     smallint,
    due_at          timestamptz,
    failed_at       timestamptz,
    failure_code    text,
    failure_detail  text,
    replayed_by     text,
    traceparent     text,
    batch_xact_id   xid8         not null default pg_current_xact_id(),
    created_at      timestamptz  not null default now(),
    credits         integer      not null default 0,
    at_fault        boolean      not null default false,
    alone           boolean      not null default false,

    constraint iu_route_delivery_pkey primary key (route_code, id)
)
with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
comment on table public.iu_route_delivery is
    'Deliveries that are pending: waiting, in flight, or due for another attempt.';
comment on column public.iu_route_delivery.route_code is 'Code of the route.';
comment on column public.iu_route_delivery.id is 'Order of routing, within a worker.';
comment on column public.iu_route_delivery.worker_name is
    'The worker that routed the event. The holder of its delivery lease delivers.';
comment on column public.iu_route_delivery.event_ref is
    'Id of the event. The event stays in the outbox until the delivery has ended.';
comment on column public.iu_route_delivery.route_kind is 'Kind of the route, as in iu_route_attempt: outbound.';
comment on column public.iu_route_delivery.subject_key is
    'Hash of the event''s subject, if the route is ordered. Null: it does not wait for other deliveries.';
comment on column public.iu_route_delivery.attempt_no is 'Number that the next attempt will have.';
comment on column public.iu_route_delivery.tries is 'Attempts spent, of those that the policy of the route allows.';
comment on column public.iu_route_delivery.route_count is
    'First attempts of which the decision about the event consists, as in iu_route_attempt. Null: it is a replay.';
comment on column public.iu_route_delivery.due_at is
    'Time before which it is not attempted. Null: at once, because it was never attempted. infinity: it is a replay, '
    'and waits for an earlier delivery of its subject.';
comment on column public.iu_route_delivery.failed_at is
    'Time from which it waits for due_at: the last attempt failed, or a replay was requested. Null: neither.';
comment on column public.iu_route_delivery.failure_code is 'Code of the last failure. Null: none has failed.';
comment on column public.iu_route_delivery.failure_detail is 'Description of the last failure. Null: none has failed.';
comment on column public.iu_route_delivery.replayed_by is
    'Name of the person or role that replays the dead letter. Null: it is not a replay.';
comment on column public.iu_route_delivery.traceparent is 'Trace context of the producer. Null: there was none.';
comment on column public.iu_route_delivery.batch_xact_id is 'Transaction that queued the delivery.';
comment on column public.iu_route_delivery.created_at is 'Time at which the delivery was queued.';
comment on column public.iu_route_delivery.credits is
    'Number of its attempts that were given back because the circuit breaker of its route opened.';
comment on column public.iu_route_delivery.at_fault is
    'True: it failed while other deliveries of its route succeeded, so its failures do not indicate a problem of the '
    'target.';
comment on column public.iu_route_delivery.alone is
    'True: the consumer ended, or lost its lease, while this delivery was in flight. It is attempted while no other '
    'delivery is in flight.';
comment on constraint iu_route_delivery_pkey on public.iu_route_delivery is 'Order of routing, by route.';

-- The route is an expression here on purpose. While the table is empty, all indexes have the same cost for the planner,
-- and an index that can be searched by the route alone would be scanned completely for each row that is settled.
create unique index iu_route_delivery_event_idx on public.iu_route_delivery (event_ref, (route_code || ''));
comment on index public.iu_route_delivery_event_idx is 'A route has at most one pending delivery of an event.';

create index iu_route_delivery_due_idx on public.iu_route_delivery (route_code, due_at) where due_at is not null;
comment on index public.iu_route_delivery_due_idx is 'Deliveries that are to be attempted again, by due time.';
create index iu_route_delivery_failed_idx on public.iu_route_delivery (route_code, failed_at) where failed_at is not null;
comment on index public.iu_route_delivery_failed_idx is
    'Deliveries by failed_at: finds times in the future after the clock was set back.';
create index iu_route_delivery_subject_idx on public.iu_route_delivery (route_code, subject_key, id)
    where subject_key is not null;
comment on index public.iu_route_delivery_subject_idx is
    'The first delivery of a subject, and the deliveries behind it.';

-- Delivery policy ----------------------------------------------------------------------------------------

-- The delivery settings of a route, with its retry policy. A setting that is not given has its default; a wrong one is
-- refused when it is written.
alter table public.iu_outbound_route add column delivery_policy jsonb not null default '{}';
comment on column public.iu_outbound_route.delivery_policy is
    'Delivery settings of a live route: attempts, backoff, deadline, concurrency, order, ... (see '
    'fn_iu_delivery_policy).';

-- Routes without a usable target -------------------------------------------------------------------------
--
-- Only the consumer that delivers knows whether it has the coroutine, the package and the secrets of a route. It
-- records the missing ones here, and deletes the row when it has them. It writes only when something changes.
create table public.iu_delivery_unusable (
    worker_name  text         not null,
    route_code   text         not null,
    consumer_id  uuid         not null,
    why          text         not null,
    hint         text         not null default '',
    since        timestamptz  not null default clock_timestamp(),

    constraint iu_delivery_unusable_pkey primary key (worker_name, route_code)
);
comment on table public.iu_delivery_unusable is 'Routes for which the delivering consumer has no usable target.';
comment on column public.iu_delivery_unusable.worker_name is 'Name of the worker.';
comment on column public.iu_delivery_unusable.route_code is 'Code of the route.';
comment on column public.iu_delivery_unusable.consumer_id is
    'The consumer that reported it (iu_consumer_heartbeat.consumer_id).';
comment on column public.iu_delivery_unusable.why is 'The missing or wrong part of the target.';
comment on column public.iu_delivery_unusable.hint is 'The remedy. Empty: none is known.';
comment on column public.iu_delivery_unusable.since is 'Time since which the target is unusable for this reason.';
comment on constraint iu_delivery_unusable_pkey on public.iu_delivery_unusable is
    'A worker has at most one reason for each route.';

-- Delivery lease -----------------------------------------------------------------------------------------

-- functions/delivery_lease explains the lease.
create table public.iu_delivery_lease (
    worker_name       text              not null,
    owner             uuid              not null,
    backend           integer,
    backend_start     timestamptz,
    seconds           double precision  not null,
    renewed_at        timestamptz       not null default clock_timestamp(),
    released          boolean           not null default false,
    settled_at        timestamptz,
    in_flight_routes  text[]            not null default '{}',
    in_flight_ids     bigint[]          not null default '{}',

    constraint iu_delivery_lease_pkey primary key (worker_name)
)
with (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
comment on table public.iu_delivery_lease is 'The consumer that delivers for each worker.';
comment on column public.iu_delivery_lease.worker_name is 'Name of the worker.';
comment on column public.iu_delivery_lease.owner is 'The lease holder (iu_consumer_heartbeat.consumer_id).';
comment on column public.iu_delivery_lease.backend is
    'Process id of the lease holder''s server process. Null: a pooler hides it.';
comment on column public.iu_delivery_lease.backend_start is
    'Start time of the lease holder''s server process. Null: a pooler hides it.';
comment on column public.iu_delivery_lease.seconds is 'Seconds after renewed_at at which the lease expires.';
comment on column public.iu_delivery_lease.renewed_at is 'Time of the last renewal.';
comment on column public.iu_delivery_lease.released is 'True: the holder has released the lease.';
comment on column public.iu_delivery_lease.settled_at is
    'Time of the last settlement of deliveries. Null: there was none.';
comment on column public.iu_delivery_lease.in_flight_routes is
    'Routes of the in-flight deliveries, while the lease holder records them. Otherwise empty.';
comment on column public.iu_delivery_lease.in_flight_ids is
    'Ids of the in-flight deliveries, in the order of in_flight_routes.';
comment on constraint iu_delivery_lease_pkey on public.iu_delivery_lease is 'A worker has one delivery lease.';

-- Circuit breaker ----------------------------------------------------------------------------------------

-- functions/circuit_breaker explains the states.
create table public.iu_delivery_breaker (
    route_code    text         not null,
    failures      integer      not null default 0,
    failed_ids    bigint[]     not null default '{}',
    opened_at     timestamptz,
    trials        integer      not null default 0,
    trial_at      timestamptz,
    trial_id      bigint,
    why           text,
    dead_letters  integer      not null default 0,
    stopped_at    timestamptz,
    lifted_at     timestamptz,

    constraint iu_delivery_breaker_pkey primary key (route_code)
)
with (fillfactor = 50);
comment on table public.iu_delivery_breaker is
    'The circuit breaker of each route, and its budget of dead letters. A route has no row until one of its '
    'deliveries has failed.';
comment on column public.iu_delivery_breaker.route_code is 'Code of the route.';
comment on column public.iu_delivery_breaker.failures is
    'Failures since the last success that count towards opening the breaker: those of different deliveries, and every '
    'result "unavailable"; without deliveries that are at fault themselves.';
comment on column public.iu_delivery_breaker.failed_ids is
    'Ids of all deliveries that have failed since the last success.';
comment on column public.iu_delivery_breaker.opened_at is 'Time at which the breaker opened. Null: it is closed.';
comment on column public.iu_delivery_breaker.trials is 'Trial deliveries that have failed since the breaker opened.';
comment on column public.iu_delivery_breaker.trial_at is
    'Time at which the next trial delivery is due. Null: the breaker is closed.';
comment on column public.iu_delivery_breaker.trial_id is
    'Id of the trial delivery that is in flight. Null: there is none.';
comment on column public.iu_delivery_breaker.why is
    'Failure code of the failure that opened the breaker, or of the last failed trial delivery. Null: the breaker is '
    'closed.';
comment on column public.iu_delivery_breaker.dead_letters is
    'Consecutive dead letters of deliveries that were attempted, without a delivery that arrived between them.';
comment on column public.iu_delivery_breaker.stopped_at is
    'Time at which the route was stopped because it had spent its budget of dead letters. Null: it is not stopped.';
comment on column public.iu_delivery_breaker.lifted_at is
    'Time at which a delivery last arrived after the budget of dead letters was spent. For one hour after it the '
    'budget is eight times as large.';
comment on constraint iu_delivery_breaker_pkey on public.iu_delivery_breaker is 'A route has one circuit breaker.';

-- Types --------------------------------------------------------------------------------------------------

create type public.iu_delivery_failure as (
    route_code   text,
    id           bigint,
    event_ref    uuid,
    target       text,
    result       text,
    began        double precision,
    ended        double precision,
    code         text,
    detail       text,
    retry_after  double precision,
    at_fault     boolean
);
comment on type public.iu_delivery_failure is
    'The outcome of a delivery that did not arrive. result: rejected, failed, unavailable or interrupted. began, ended: '
    'ages of the beginning and the end of the call, in seconds. event_ref null: the caller does not know the event. '
    'target null: no target was called. retry_after: the delay that the target asked for, in seconds. at_fault: it '
    'failed while other deliveries of its route succeeded.';

create type public.iu_deliverable as (
    route           jsonb,
    route_code      text,
    delivery_id     bigint,
    attempt_no      integer,
    subject_key     bigint,
    alone           boolean,
    problem         text,
    event_ref       uuid,
    event_domain    text,
    event_type      text,
    event_stream    text,
    subject         text,
    subject_table   text,
    source_system   text,
    actor_ref       text,
    correlation_id  text,
    occurred_at     timestamptz,
    created_at      timestamptz,
    traceparent     text,
    payload         text
);
comment on type public.iu_deliverable is
    'A delivery with its event, as a consumer takes it. The attributes from event_ref on are those of the class Event of '
    'the consumer (model/delivery.py), in the same order. problem: why the delivery cannot be given to a target. Null: '
    'it can be. route: only in a row without a delivery, the state of a route (fn_iu_delivery_take).';

-- Guards -------------------------------------------------------------------------------------------------

-- The name sorts after other triggers of this kind, because their changes to the row must be checked as well.
create trigger zz_iu_outbound_route_guard
    before insert or update on public.iu_outbound_route
    for each row
    execute function public.fn_iu_outbound_route_guard();
comment on trigger zz_iu_outbound_route_guard on public.iu_outbound_route is
    'A route that is not on the list of live routes cannot deliver.';
alter table public.iu_outbound_route enable always trigger zz_iu_outbound_route_guard;
alter table public.iu_outbound_route drop constraint iu_outbound_route_safe_chk;

create trigger zz_dot_config_live_routes
    after insert or update or delete or truncate on public.dot_config
    for each statement
    execute function public.fn_iu_delivery_list_guard();
comment on trigger zz_dot_config_live_routes on public.dot_config is
    'Turns a route that is removed from the list back to dry run, in the same transaction.';
alter table public.dot_config enable always trigger zz_dot_config_live_routes;
