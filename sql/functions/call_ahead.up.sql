-- The call ahead: the target of a single new event is called before the batch that routes the event has ended.
--
-- Delivery is at least once, and the idempotency key depends on route and event only. So a call that begins before its
-- routing decision is durable differs from a later one only if the consumer or the server ends in between: then the
-- event is routed later, and called again with the same key. docs/why/call-ahead.md has the conditions.
--
-- kind: repeatable
-- since: 1.1
-- needs: 008, 012, functions/delivery_switches, functions/delivery_take, functions/idempotency_key, functions/outbox_position, functions/trace_ids
-- locks: nothing that other sessions use

-- Reads only. The answer is empty unless exactly one event is unread, and it is certain that
--
--   * no worker has decided it in any history: its number was drawn after the newest tick, and no other worker reads the
--     domain;
--   * no earlier event is unread: no transaction that was in progress in prev has left events;
--   * its transaction is durable: all WAL up to now is flushed, and no standby has to confirm it. A transaction with
--     synchronous_commit = off is visible before it is durable;
--   * the route delivers, and on an ordered route no delivery of the subject is pending.
--
-- A delivery without these conditions is handed over by the batch, or taken. The conditions about the size of the payload
-- and about times are those of fn_iu_delivery_hand_over.
create or replace function public.fn_iu_delivery_peek(p_worker_name text, p_routes text[])
returns setof public.iu_deliverable
language plpgsql
stable
strict
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
declare
    -- Stable: every statement uses the snapshot of the calling query, which was taken before this position was read. So
    -- the commit of each visible event lies before it, and WAL that this function writes itself (it may prune a page)
    -- lies behind it.
    v_wal      constant pg_lsn := pg_current_wal_insert_lsn();
    c          public.iu_route_worker_cursor;
    v_from_xid xid8;
    v_count    integer;
    v_id       uuid;
    v_seq      bigint;
    r          public.iu_deliverable;
    v_payload  jsonb;
begin
    select w.* into c from public.iu_route_worker_cursor w where w.worker_name = p_worker_name;
    if c.tick is not null or c.failures > 0 or c.worker_name is null
       or public.fn_iu_outbox_refusal(c.lineage, c.prev) is not null
       or exists (select from public.iu_route_worker_cursor w
                   where w.event_domain = c.event_domain and w.worker_name <> p_worker_name)
       or exists (select from pg_snapshot_xip(c.prev) x(xid)
                   cross join lateral (
                         select o.id
                           from public.event_outbox o
                          where o.event_domain = c.event_domain and o.xact_id >= x.xid and o.xact_id <= x.xid
                          order by o.xact_id
                          limit 1) old) then
        return;
    end if;
    v_from_xid := pg_snapshot_xmax(c.prev);
    select count(*), (array_agg(n.id))[1], max(n.event_seq)
      into v_count, v_id, v_seq
      from (select o.id, o.event_seq
              from public.event_outbox o
             where o.event_domain = c.event_domain and o.xact_id >= v_from_xid
             order by o.xact_id
             limit 2) n;
    if v_count <> 1 or v_seq <= c.hi_seq or current_setting('synchronous_standby_names') <> ''
       or pg_current_wal_flush_lsn() < v_wal then
        return;
    end if;

    r.delivery_id := 0;
    r.attempt_no := 1;
    r.alone := false;
    for r.route_code, r.subject_key, r.event_ref, r.event_domain, r.event_type, r.event_stream, r.subject,
        r.subject_table, r.source_system, r.actor_ref, r.correlation_id, r.occurred_at, r.created_at, r.traceparent,
        v_payload in
        select q.route_code, k.subject_key, o.id, o.event_domain, o.event_type, o.event_stream, k.subject,
               o.event_subject_table, o.source_system, o.actor_ref, o.correlation_id::text, o.occurred_at, o.created_at,
               public.fn_iu_trace_context(o.traceparent), o.safe_payload
          from public.event_outbox o
         cross join unnest(p_routes) w(route_code)
         cross join lateral (
               select x.route_code, x.delivery_policy ->> 'order' = 'subject' as ordered,
                      public.fn_iu_delivery_paused_by(x.route_code, x.enabled, x.dry_run, b.stopped_at, b.opened_at)
                          as paused_by
                 from public.iu_outbound_route x
                 left join public.iu_delivery_breaker b on b.route_code = x.route_code
                where x.route_code = w.route_code and x.target_kind in ('workflow', 'external_endpoint')
                  and x.event_domain = o.event_domain and x.event_type = o.event_type
                  and x.event_stream = o.event_stream
                limit 1) q
         cross join lateral (
               select s.subject, case when q.ordered then hashtextextended(s.subject, 0) end as subject_key
                 from (select coalesce(o.event_subject_ref::text, o.canonical_address) as subject) s) k
         where o.id = v_id and q.paused_by is null
           and (k.subject_key is null
                or not exists (select from public.fn_iu_delivery_first(q.route_code, k.subject_key) f
                                where f.subject_key = k.subject_key))
    loop
        if pg_column_size(v_payload) < 4000 and pg_column_compression(v_payload) is null
           and r.occurred_at between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00'
           and r.created_at between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00' then
            r.payload := v_payload::text;
            return next r;
        end if;
    end loop;
end
$$;
comment on function public.fn_iu_delivery_peek(text, text[]) is
    'The deliveries of the given routes that a batch will queue, if a single new event is unread and it is certain that '
    'no consumer has decided it. Their delivery_id is 0. Writes nothing.';

-- A batch may decide otherwise than the peek: it makes the event a dead letter, or skips it, because a trigger of the
-- application raised an error or the route was changed in between. If the call succeeded, the audit must say so: then the
-- delivery is queued after all, as a replay of the dead letter if there is one, and is settled at once.
create or replace function public.fn_iu_delivery_of_call(
    p_worker_name text, p_owner uuid, p_route_code text, p_event_ref uuid, p_sent boolean)
returns setof public.iu_deliverable
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    v_key constant text := public.fn_iu_idempotency_key(p_route_code, p_event_ref);
    r     public.iu_deliverable;
begin
    perform from public.iu_delivery_lease l
      where l.worker_name = p_worker_name and l.owner = p_owner and not l.released for update;
    if not found
       or exists (select from public.event_outbox o
                    join public.iu_route_worker_cursor w on w.worker_name = p_worker_name
                   where o.id = p_event_ref and not public.fn_iu_outbox_consumed(w, o.xact_id, o.event_seq, o.id)) then
        return;
    end if;
    if p_sent then
        insert into public.iu_route_delivery
            (worker_name, route_code, event_ref, attempt_no, replayed_by, traceparent)
        select p_worker_name, p_route_code, p_event_ref, coalesce(max(a.attempt_no), 0) + 1,
               'a call that began before the decision',
               (select public.fn_iu_trace_context(o.traceparent) from public.event_outbox o where o.id = p_event_ref)
          from public.iu_route_attempt a
         where a.idempotency_key = v_key
        having coalesce(bool_and(a.status <> 'sent'), true)
           and not exists (select from public.iu_route_delivery d
                            where d.event_ref = p_event_ref and d.route_code || '' = p_route_code);
    end if;
    r.route_code := p_route_code;
    r.event_ref := p_event_ref;
    select d.id, d.attempt_no, d.subject_key, d.alone
      into r.delivery_id, r.attempt_no, r.subject_key, r.alone
      from public.iu_route_delivery d
     where d.event_ref = p_event_ref and d.route_code || '' = p_route_code
     limit 1;
    return next r;
end
$$;
comment on function public.fn_iu_delivery_of_call(text, uuid, text, uuid, boolean) is
    'The delivery of an event that was called ahead. If the batch has not queued it and the call succeeded, it is queued '
    'now. delivery_id is null if the event was decided otherwise; no row: no batch has read the event yet, or the caller '
    'does not have the lease.';
