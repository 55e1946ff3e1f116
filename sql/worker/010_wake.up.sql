-- The bell, which wakes a sleeping consumer and costs nothing under load; and the heartbeat, which makes its
-- silence visible.
--
-- needs: 005, 008
-- locks: SHARE ROW EXCLUSIVE on event_outbox and dot_config, for the catalogue change only

-- Bell ---------------------------------------------------------------------------------------------------
--
-- NOTIFY takes a lock over the whole cluster until the commit is flushed, so notifying commits go one by one.
-- Hence writers notify only while a consumer sleeps. A consumer that sleeps holds advisory lock (726001, slot)
-- EXCLUSIVE in its bell session; a writer may stay silent only if it gets every slot SHARED for its transaction.
-- Transaction locks are let go after the commit is visible. So "a consumer sleeps" and "a writer stayed silent and
-- is not visible yet" exclude each other: a consumer that gets its lock and then looks once more has missed
-- nothing. The proof with all interleavings is in docs/why/bell.md. Only try-locks: nobody ever waits.
--
--   * Deferred: the locks are asked for at commit and not held through the writer's whole transaction.
--   * A row trigger, because a statement trigger does not fire for a direct insert into a partition.
--   * PREPARE TRANSACTION refuses after NOTIFY, and would park the locks in the prepared transaction. Such a
--     writer stays silent; its events are found by the catch-up timer. Only the text of the statement tells, so a
--     role that says SET CONSTRAINTS IMMEDIATE before PREPARE must opt out: ALTER ROLE ... SET iu.no_bell = on.
--     A replication worker shows no text; it stays silent if a subscription has two_phase, and so may prepare.
--   * A NOTIFY queue that is full fails the writer. From half full on we stay silent, and the timer works.
--   * A domain that no worker reads has nobody to wake: its writers take no lock, for a lock that is held keeps the
--     consumers of other domains from sleeping. Domain iu always has its worker, so its writers do not ask.
--   * One sleeper is reason enough to notify, so the first refused slot decides.

create function public.fn_iu_ring_bell()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('iu.no_bell', true) = 'on' then
        return null;
    end if;
    -- Apart from each other, because the other table has no such column.
    if tg_nargs = 1 then
        if new.event_domain <> 'iu' and not exists (
               select from public.iu_route_worker_cursor c where c.event_domain = new.event_domain) then
            return null;
        end if;
    end if;
    if current_setting('max_prepared_transactions') <> '0'
       and coalesce(current_query() ~* '\mprepare\s+transaction\M',
                    exists (select from pg_subscription s where s.subtwophasestate <> 'd')) then
        return null;
    end if;
    if pg_try_advisory_xact_lock_shared(726001, 1) and pg_try_advisory_xact_lock_shared(726001, 2) then
        return null;
    end if;
    if pg_notification_queue_usage() < 0.5 then
        perform pg_notify('iu_event_outbox', '');
    end if;
    return null;
end
$$;
comment on function public.fn_iu_ring_bell() is
    'Notifies channel iu_event_outbox, empty payload, if a consumer sleeps. Never fails and never waits.';

-- Any writer asks which domains have a worker, with its own rights; that is no secret.
grant select (event_domain) on public.iu_route_worker_cursor to public;

-- WHEN is evaluated for each row; the setting remembers for which domains this transaction has queued the trigger
-- already, so a bulk insert queues it once. CASE, because its order of evaluation is certain; one domain comes first,
-- because it is what nearly every transaction has.
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
    'Wakes the consumer of a domain at commit, once a transaction, and only if it sleeps.';

create constraint trigger zz_dot_config_bell
    after insert or update of value on public.dot_config
    deferrable initially deferred
    for each row
    when (new.key in ('iu_core.routes_master_enabled', 'iu_core.route_worker_enabled'))
    execute function public.fn_iu_ring_bell();
comment on trigger zz_dot_config_bell on public.dot_config is
    'A gate that opens or closes wakes the consumer, so that it obeys at once.';

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
    'One row for each worker that a consumer process serves: who it is, what it does, when it last said so.';
comment on column public.iu_consumer_heartbeat.consumer_id is 'Identity of the process, new at every start.';
comment on column public.iu_consumer_heartbeat.worker_name is 'The worker that it serves.';
comment on column public.iu_consumer_heartbeat.host is 'Host that it runs on.';
comment on column public.iu_consumer_heartbeat.pid is 'Its process id there.';
comment on column public.iu_consumer_heartbeat.version is 'Version of iu-listen.';
comment on column public.iu_consumer_heartbeat.state is
    'starting, standing_by (another one is active), gate_closed, refusing, failing (its batches), idle, busy or '
    'stopped.';
comment on column public.iu_consumer_heartbeat.state_detail is 'Why, when the state needs a reason.';
comment on column public.iu_consumer_heartbeat.listening is 'True: woken by the bell. False: it polls.';
comment on column public.iu_consumer_heartbeat.polling_why is
    'Why it polls: no LISTEN there, a lost bell session, no free slot. Null: it need not.';
comment on column public.iu_consumer_heartbeat.cadence_seconds is 'How often it promises to beat.';
comment on column public.iu_consumer_heartbeat.started_at is 'When the process started.';
comment on column public.iu_consumer_heartbeat.beat_at is 'When it last beat.';
comment on column public.iu_consumer_heartbeat.last_wake is 'Why it last woke: notify, catch_up, start_up, reconnect, linger or poll.';
comment on column public.iu_consumer_heartbeat.last_wake_at is 'When it last woke.';
comment on column public.iu_consumer_heartbeat.wakes is 'Number of wakes of each kind, and of lost ones, since the start.';
comment on column public.iu_consumer_heartbeat.events is 'Events routed since the start.';
comment on column public.iu_consumer_heartbeat.lag_seconds is 'While busy, age of the last event routed; null: nothing waits.';
comment on constraint iu_consumer_heartbeat_pkey on public.iu_consumer_heartbeat is 'One row a process and worker.';
comment on constraint iu_consumer_heartbeat_state_chk on public.iu_consumer_heartbeat is 'The states that exist.';
comment on constraint iu_consumer_heartbeat_cadence_positive on public.iu_consumer_heartbeat is
    'A promise to beat never is no promise.';
