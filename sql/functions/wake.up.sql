-- The bell: the wake-up of an idle consumer by NOTIFY. It costs nothing under load. The triggers of 010, 022 and 025 call
-- it.
--
-- kind: repeatable
-- needs: 008
-- locks: nothing that other sessions use

-- NOTIFY takes a lock on the whole cluster until the commit is flushed, so commits that notify are serialized.
-- Therefore producers notify only while a consumer of their domain is idle. Each domain has two slots, which are the
-- advisory locks (726001, hashtext('domain/1')) and (726001, hashtext('domain/2')). An idle consumer holds one of them
-- EXCLUSIVE in its listener session (it is armed). A producer may omit the notification only if it gets both slots of its
-- domain SHARED for its transaction. Transaction locks are released after the commit is visible. So "a consumer is
-- armed" and "a producer has omitted the notification and is not visible yet" exclude each other: a consumer that gets
-- its lock and then looks once more at the outbox has missed nothing. The proof with all interleavings is in
-- docs/why/bell.md. Only try-locks are used, so neither side ever waits.
--
--   * Deferred: the locks are requested at commit and not held during the producer's whole transaction.
--   * A row trigger, because a statement trigger does not fire for a direct insert into a partition.
--   * PREPARE TRANSACTION fails after NOTIFY, and would keep the locks in the prepared transaction. Such a producer
--     sends no notification; its events are found by the catch-up poll. It is recognized only by the text of the
--     statement, so a role that uses SET CONSTRAINTS IMMEDIATE before PREPARE must opt out: ALTER ROLE ... SET
--     iu.no_bell = on. A replication worker has no statement text; it sends none if a subscription has two_phase,
--     because it may prepare.
--   * A full NOTIFY queue fails the producer. From half full on, no notification is sent, and the catch-up poll works.
--   * A domain that no worker reads has no consumer to wake. The condition of the trigger names the domains with a
--     worker, so for any other domain the function is not called.
--   * The payload is the domain. A consumer ignores the notifications of other domains. It is empty after a change of a
--     gate, a route or a switch, or a replay. Such a change concerns every consumer, and the notification is sent whether
--     or not one is armed, because such changes are rare.
--   * One armed consumer is enough reason to notify, so the first refused slot decides.
create or replace function public.fn_iu_ring_bell()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_domain text := '';
begin
    if current_setting('iu.no_bell', true) = 'on' then
        return null;
    end if;
    -- The other table of this trigger function has no such column.
    if tg_nargs = 1 then
        v_domain := new.event_domain;
    end if;
    if current_setting('max_prepared_transactions') <> '0'
       and coalesce(current_query() ~* '\mprepare\s+transaction\M',
                    exists (select from pg_subscription s where s.subtwophasestate <> 'd')) then
        return null;
    end if;
    if v_domain <> '' and pg_try_advisory_xact_lock_shared(726001, hashtext(v_domain || '/1'))
       and pg_try_advisory_xact_lock_shared(726001, hashtext(v_domain || '/2')) then
        return null;
    end if;
    if pg_notification_queue_usage() < 0.5 then
        perform pg_notify('iu_event_outbox', v_domain);
    end if;
    return null;
end
$$;
comment on function public.fn_iu_ring_bell() is
    'Sends NOTIFY on channel iu_event_outbox, with the domain as payload, if a consumer of the domain is armed; after a '
    'change of a gate always, with an empty payload. Never fails and never waits.';

-- Called in the middle of a transaction, when it is not known whether the transaction will be prepared. NOTIFY would make
-- that fail, so where transactions can be prepared there is no notification: an idle consumer reads the deliveries by
-- itself, after some seconds.
create or replace function public.fn_iu_ring_consumers()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('max_prepared_transactions') = '0' and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('iu_event_outbox', '');
    end if;
end
$$;
comment on function public.fn_iu_ring_consumers() is
    'Wakes all consumers at commit, because a route or a switch was changed or deliveries were queued again.';

create or replace function public.fn_iu_ring_after_change()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform public.fn_iu_ring_consumers();
    return null;
end
$$;
comment on function public.fn_iu_ring_after_change() is
    'Trigger function of iu_outbound_route and dot_config: calls fn_iu_ring_consumers().';

-- The setting iu.bell is local to the transaction. A transaction that writes events of two domains in turns queues the
-- trigger again with each change of the domain, which is harmless. The search_path is not set, because that would cost
-- each INSERT a fifth of its processor time; so every name has its schema.
create or replace function public.fn_iu_bell_due(p_domain text)
returns boolean
language plpgsql
as $$
begin
    if pg_catalog.current_setting('iu.bell', true) operator(pg_catalog.=) p_domain then
        return false;
    end if;
    perform pg_catalog.set_config('iu.bell', p_domain, true);
    return true;
end
$$;
comment on function public.fn_iu_bell_due(text) is
    'Whether the last event of this transaction had another domain, or there was none: then the bell is to be queued. A '
    'bulk insert therefore queues it once.';

-- The condition is generated with the domains as constants, because a condition must not read a table, and a trigger
-- that is queued costs producers of a domain without a worker a quarter more processor time. It is short, because the server
-- parses it for each statement. An advisory lock excludes a concurrent change of the workers, whose row would not be
-- visible here. While ACCESS EXCLUSIVE is requested, producers wait behind it; hence the short lock_timeout.
create or replace function public.fn_iu_set_bell_domains()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '500ms'
as $$
declare
    v_domains text;
begin
    perform pg_advisory_xact_lock(726004, 3);
    v_domains := (select array_agg(d.name order by d.name)::text
                    from (select 'iu' as name union select c.event_domain from public.iu_route_worker_cursor c) d);
    if exists (select from pg_trigger t
                where t.tgrelid = 'public.event_outbox'::regclass and t.tgname = 'zz_event_outbox_bell'
                  and strpos(pg_get_triggerdef(t.oid), quote_literal(v_domains)) > 0) then
        return null;
    end if;
    drop trigger if exists zz_event_outbox_bell on public.event_outbox;
    execute format($trigger$
        create constraint trigger zz_event_outbox_bell
            after insert or update of event_domain on public.event_outbox
            deferrable initially deferred
            for each row
            when (new.event_domain = any (%L::text[]) and public.fn_iu_bell_due(new.event_domain))
            execute function public.fn_iu_ring_bell('event')
    $trigger$, v_domains);
    comment on trigger zz_event_outbox_bell on public.event_outbox is
        'Wakes the consumer of a domain at commit, once for each transaction and domain, and only if a consumer is '
        'armed. Its condition names the domains that have a worker.';
    alter table public.event_outbox enable always trigger zz_event_outbox_bell;
    return null;
end
$$;
comment on function public.fn_iu_set_bell_domains() is
    'Creates the trigger of the bell for the domains that have a worker, and does nothing if it exists for them. Called '
    'by a trigger after each change of the workers.';
