-- The triggers of the bell, which wakes an idle consumer (functions/wake), and the heartbeat, which shows that a consumer
-- is silent.
--
-- needs: 005, 008, functions/wake
-- locks: SHARE ROW EXCLUSIVE on event_outbox and dot_config, for the catalogue change only

-- Bell ---------------------------------------------------------------------------------------------------

-- Every producer checks with its own rights whether a domain has a worker; the domains are not confidential.
grant select (event_domain) on public.iu_route_worker_cursor to public;

-- WHEN is evaluated for each row. The setting iu.bell remembers the domains for which this transaction has queued the
-- trigger already, so a bulk insert queues it once. CASE is used because its order of evaluation is defined; the case
-- of a single domain comes first, because it is by far the most common.
create constraint trigger zz_event_outbox_bell
    after insert or update of event_domain on public.event_outbox
    deferrable initially deferred
    for each row
    when (case when current_setting('iu.bell', true) = pg_current_xact_id()::text || '/' || new.event_domain || '/'
               then false
               when starts_with(current_setting('iu.bell', true), pg_current_xact_id()::text || '/') is not true
               then set_config('iu.bell', pg_current_xact_id()::text || '/' || new.event_domain || '/', true) is not null
               when strpos(current_setting('iu.bell', true), '/' || new.event_domain || '/') = 0
               then set_config('iu.bell', current_setting('iu.bell', true) || new.event_domain || '/', true) is not null
               else false end)
    execute function public.fn_iu_ring_bell('event');
comment on trigger zz_event_outbox_bell on public.event_outbox is
    'Wakes the consumer of a domain at commit, once for each transaction and domain, and only if a consumer is armed.';

create constraint trigger zz_dot_config_bell
    after insert or update of value on public.dot_config
    deferrable initially deferred
    for each row
    when (new.key in ('iu_core.routes_master_enabled', 'iu_core.route_worker_enabled'))
    execute function public.fn_iu_ring_bell();
comment on trigger zz_dot_config_bell on public.dot_config is
    'Wakes the consumer when a gate is opened or closed, so that the change takes effect at once.';

alter table public.event_outbox enable always trigger zz_event_outbox_bell;
alter table public.dot_config enable always trigger zz_dot_config_bell;

-- Heartbeat ----------------------------------------------------------------------------------------------

create table public.iu_consumer_heartbeat (
    consumer_id      uuid              not null,
    worker_name      text              not null,
    host             text              not null,
    pid              integer           not null,
    version          text              not null,
    state            text              not null,
    state_detail     text,
    listening        boolean           not null default false,
    polling_why      text,
    cadence_seconds  double precision  not null,
    started_at       timestamptz       not null default now(),
    beat_at          timestamptz       not null default now(),
    last_wake        text,
    last_wake_at     timestamptz,
    wakes            jsonb             not null default '{}',
    events           bigint            not null default 0,
    lag_seconds      double precision,

    constraint iu_consumer_heartbeat_pkey primary key (consumer_id, worker_name),
    constraint iu_consumer_heartbeat_state_chk check (
        state in ('starting', 'standing_by', 'gate_closed', 'refusing', 'failing', 'idle', 'busy', 'stopped')),
    constraint iu_consumer_heartbeat_cadence_positive check (cadence_seconds > 0)
)
with (fillfactor = 50);

comment on table public.iu_consumer_heartbeat is
    'One row for each worker that a consumer process serves: its identity, its state, and the time of its last '
    'heartbeat.';
comment on column public.iu_consumer_heartbeat.consumer_id is 'Identity of the consumer process, new at every start.';
comment on column public.iu_consumer_heartbeat.worker_name is 'Name of the worker that the consumer serves.';
comment on column public.iu_consumer_heartbeat.host is 'Host on which the consumer runs.';
comment on column public.iu_consumer_heartbeat.pid is 'Process id of the consumer on its host.';
comment on column public.iu_consumer_heartbeat.version is 'Version of iu-listen that the consumer runs.';
comment on column public.iu_consumer_heartbeat.state is
    'starting, standing_by (another consumer holds the lease), gate_closed, refusing, failing (its batches fail), '
    'idle, busy or stopped.';
comment on column public.iu_consumer_heartbeat.state_detail is 'Reason for the state. Null: the state needs none.';
comment on column public.iu_consumer_heartbeat.listening is 'True: the bell wakes the consumer. False: it polls.';
comment on column public.iu_consumer_heartbeat.polling_why is
    'Reason why it polls: no LISTEN, a lost listener session, or no free slot. Null: it does not need to.';
comment on column public.iu_consumer_heartbeat.cadence_seconds is 'Interval of the heartbeat in seconds.';
comment on column public.iu_consumer_heartbeat.started_at is 'Time at which the process started.';
comment on column public.iu_consumer_heartbeat.beat_at is 'Time of the last heartbeat.';
comment on column public.iu_consumer_heartbeat.last_wake is
    'Reason of the last wake-up: notify, catch_up, start_up, reconnect, linger or poll. Null: there was none.';
comment on column public.iu_consumer_heartbeat.last_wake_at is 'Time of the last wake-up. Null: there was none.';
comment on column public.iu_consumer_heartbeat.wakes is
    'Number of wake-ups of each kind, and of lost notifications, since the start.';
comment on column public.iu_consumer_heartbeat.events is 'Events routed since the start.';
comment on column public.iu_consumer_heartbeat.lag_seconds is
    'Age in seconds of the last routed event, while the consumer is busy. Null: no event waits.';
comment on constraint iu_consumer_heartbeat_pkey on public.iu_consumer_heartbeat is
    'A consumer process has one row for each worker.';
comment on constraint iu_consumer_heartbeat_state_chk on public.iu_consumer_heartbeat is 'The states of a consumer.';
comment on constraint iu_consumer_heartbeat_cadence_positive on public.iu_consumer_heartbeat is
    'The interval of the heartbeat is longer than 0.';
