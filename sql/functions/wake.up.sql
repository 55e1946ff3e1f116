-- The bell: the wake-up of an idle consumer by NOTIFY. It costs nothing under load. The triggers of 010 call it.
--
-- kind: repeatable
-- needs: 008
-- locks: nothing that other sessions use

-- NOTIFY takes a lock on the whole cluster until the commit is flushed, so commits that notify are serialized.
-- Therefore producers notify only while a consumer of their domain is idle. Each domain has two slots, which are the
-- advisory locks (726001, hashtext('domain/1')) and (726001, hashtext('domain/2')). An idle consumer holds one of them
-- EXCLUSIVE in its listener session (it is armed). A producer may omit the notification only if it gets both slots of its
-- domain SHARED for its transaction. Transaction locks are released after the commit is visible. So "a consumer is armed" and "a producer has
-- omitted the notification and is not visible yet" exclude each other: a consumer that gets its lock and then looks
-- once more at the outbox has missed nothing. The proof with all interleavings is in docs/why/bell.md. Only try-locks
-- are used, so neither side ever waits.
--
--   * Deferred: the locks are requested at commit and not held during the producer's whole transaction.
--   * A row trigger, because a statement trigger does not fire for a direct insert into a partition.
--   * PREPARE TRANSACTION fails after NOTIFY, and would keep the locks in the prepared transaction. Such a producer
--     sends no notification; its events are found by the catch-up poll. It is recognized only by the text of the
--     statement, so a role that uses SET CONSTRAINTS IMMEDIATE before PREPARE must opt out: ALTER ROLE ... SET
--     iu.no_bell = on. A replication worker has no statement text; it sends none if a subscription has two_phase,
--     because it may prepare.
--   * A full NOTIFY queue fails the producer. From half full on, no notification is sent, and the catch-up poll works.
--   * A domain that no worker reads has no consumer to wake, so its producers take no lock. Domain iu always has a
--     worker, so its producers do not check.
--   * The payload is the domain. A consumer ignores the notifications of other domains. It is empty after a change of a
--     gate, which concerns every consumer, and is sent whether or not one is armed, because gates change rarely.
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
    -- Nested, because the other table of this trigger function has no such column.
    if tg_nargs = 1 then
        v_domain := new.event_domain;
        if v_domain <> 'iu' and not exists (
               select from public.iu_route_worker_cursor c where c.event_domain = v_domain) then
            return null;
        end if;
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
