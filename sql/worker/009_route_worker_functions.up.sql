-- Routing: the batch of a worker, its gate, the delivery seam, the replay of one dead letter, health, and three views.
--
-- needs: 005, 006, 007, 008, functions/event_snapshot, functions/outbox_position, functions/trace_ids
-- calls: 010, 012, 021, functions/completeness, functions/delivery_status, functions/delivery_switches, functions/metrics, functions/monitoring, functions/sql_targets
-- locks: nothing that exists

-- Gate ---------------------------------------------------------------------------------------------------

-- Functions that every batch calls are written in plpgsql: their plans are kept for the session. A SQL function that
-- sets its search_path cannot be inlined and is planned again at each call, which takes a considerable part of the time
-- of a small batch.
create function public.fn_iu_route_worker_enabled()
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((select d.value = 'true'
                       from public.dot_config d
                      where d.key = 'iu_core.route_worker_enabled'), false);
end
$$;
comment on function public.fn_iu_route_worker_enabled() is
    'The worker gate: true only while iu_core.route_worker_enabled is exactly ''true''.';

-- Delivery seam ------------------------------------------------------------------------------------------

create function public.fn_iu_route_deliver(p_route_code text, p_event_id uuid, p_event jsonb)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'delivery is not built: route % may not deliver event %', p_route_code, p_event_id
        using errcode = 'feature_not_supported',
              hint = 'Set the route back to dry run: iu-listen route disable, or dry_run = true.';
end
$$;
comment on function public.fn_iu_route_deliver(text, uuid, jsonb) is
    'The delivery seam, called for targets that the database cannot deliver to. It always raises, so nothing is '
    'delivered by mistake.';

-- The batch ----------------------------------------------------------------------------------------------
--
-- One transaction locks the cursor, routes a page, writes the attempts and moves the cursor. The cursor is a pair of
-- snapshots; the algorithm is that of PGQ, and docs/why/cursor.md has the proof and the measurements. prev: everything
-- that is visible in it is consumed. tick: the snapshot that is being consumed now. The rows of a tick are visible in
-- tick and not in prev. They are
--
--   a) the rows of transactions that prev lists as in progress and tick does not (they ended in between), and
--   b) the rows of transactions from xmax(prev) on that are visible in tick.
--
-- This set never changes once prev and tick are fixed, so it can be paged by (event_seq, id) across batches and
-- crashes. A transaction that stays open delays nothing: it stays listed as in progress.
--
--   * The tick is taken in a statement after the one that locked the cursor. If one statement did both, it would,
--     after a wait, pair the new prev with an older snapshot (EvalPlanQual), and events would be delivered twice.
--   * (a) is read by transaction through event_outbox_tick_idx. There are as many such transactions as were open,
--     usually none.
--   * (b) is read by event_seq, from the lowest one of the tick (tick_floor), through event_outbox_order_idx. By
--     transaction, each page would have to sort the whole tick again, which after a long absence is most of the work.
--     The floor is read from the rows and not derived from the sequence, so a sequence that was set back costs time
--     but loses no events. Floor and position form one bound: with two bounds, an index search begins at either of
--     them, which may be the beginning of the outbox, and reads on from there to the other without returning rows.
--   * Generic plans without sequential, bitmap or parallel scans: only the plan shapes above are efficient, and a plan
--     that depends on the current statistics makes the latency unpredictable.
--   * The transaction of the batch counts as in progress in its tick. Only if it had written events before the call
--     (the probe, or a psql session), these are read in a second pass and remembered as (own_xid, own_seq), because
--     after the commit they belong to a later tick.
--   * Sorting is discouraged as well. Otherwise (b) would be read completely through the wrong index and sorted. Rows
--     that are read by transaction are requested in the order of transactions, with ranges and not with "=", which
--     would make that order irrelevant; so only event_outbox_tick_idx fits. Costs alone do not ensure that: a plan
--     that was made while the table was empty would read all events of the domain in each batch, until the table is
--     analyzed.
--   * UNION ALL instead of OR: OR results in a BitmapOr over both, or in a sequential scan.

create function public.fn_iu_route_worker_run(p_worker_name text, p_batch_limit integer default 1000)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set max_parallel_workers_per_gather = 0
set jit = off
as $$
declare
    c               public.iu_route_worker_cursor;
    v_refusal       text;
    v_own           xid8;
    v_pass          integer := 0;
    v_fresh         boolean;
    v_page          integer;
    -- the range that this pass reads
    v_resolved      xid8[];
    v_from_xid      xid8;
    v_to_xid        xid8;
    v_open          xid8[];
    v_after_seq     bigint;
    v_after_id      uuid;
    v_low_seq       bigint;
    v_low_id        uuid;
    -- the page
    v_ids           uuid[];
    v_types         text[];
    v_streams       text[];
    v_seqs          bigint[];
    v_contexts      text[];
    v_created       timestamptz[];
    v_last_created  timestamptz;
    -- the parts of the page that are still to be routed, as pairs [from, to]; the last pair is next
    v_parts         integer[];
    v_lo            integer;
    v_hi            integer;
    v_routes        public.iu_outbound_route[];
    v_here          public.iu_outbound_route[];
    v_lives         text[];
    -- kinds (stream and type) of the events of the page, and the kinds whose enabled routes are all live
    v_kinds         text[];
    v_live_kinds    text[];
    v_queues        jsonb;
    v_held          jsonb;
    v_shared        boolean;
    v_counts        jsonb;
    v_fan_out       bigint;
    v_live          record;
    v_decision      text;
    -- Failures. Only errors that an event can cause count as failures of the event: bad data, a violated rule, a limit,
    -- a RAISE. Errors such as a full disk, a lost lock or a missing privilege concern the whole batch, which is rolled
    -- back and repeated.
    v_faults        constant text[] := array['22', '23', '44', '54', 'P0'];
    -- A target is code of the application, so any error of it counts as a failure of the event, except errors that
    -- concern the system: connections, deadlocks, resources, an operator's intervention, internal errors, and a lock
    -- that was not waited for.
    v_system        constant text := '^(08|40|53|57|58|XX|55P03)';
    v_bad           record;
    v_event         jsonb;
    v_failed_id     uuid[];
    v_failed_route  text[];
    v_failed_why    text[];
    v_state         text;
    v_message       text;
    -- earlier failures of the batch (021)
    v_cut           integer;
    v_place         integer;
    v_given_up      boolean;
    v_asked         constant integer := p_batch_limit;
    -- the answer
    v_count         bigint;
    v_skip          bigint;
    v_seen          bigint := 0;
    v_attempts      bigint := 0;
    v_skipped       bigint := 0;
    v_dead          bigint := 0;
    v_delivered     bigint := 0;
    v_queued        bigint := 0;
    v_last_id       bigint;
    v_done          boolean;
    v_more          boolean := false;
    v_answer        jsonb;
begin
    if p_batch_limit is null or p_batch_limit < 1 then
        raise exception 'batch limit must be 1 or more, not %', coalesce(p_batch_limit::text, 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    if not public.fn_iu_core_routes_enabled() then
        return jsonb_build_object('status', 'master_gate_closed', 'worker_name', p_worker_name, 'seen', 0);
    end if;
    if not public.fn_iu_route_worker_enabled() then
        return jsonb_build_object('status', 'worker_gate_closed', 'worker_name', p_worker_name, 'seen', 0);
    end if;

    v_own := pg_current_xact_id_if_assigned();

    -- Look without a lock first: a lock takes an xid and writes WAL, and most looks of an idle worker find nothing.
    select w.* into c from public.iu_route_worker_cursor w where w.worker_name = p_worker_name;
    if not found then
        raise exception 'worker % is not registered', p_worker_name
            using errcode = 'no_data_found', hint = 'Registered workers: iu-listen cursor show';
    end if;
    v_refusal := public.fn_iu_outbox_refusal(c.lineage, c.prev);
    if v_refusal is not null then
        if v_refusal = 'cursor_ahead' then
            perform public.fn_iu_outbox_refuse(v_refusal);
        end if;
        return jsonb_build_object('status', case when v_refusal = 'standby' then 'standby' else 'foreign_history' end,
                                  'reason', v_refusal, 'worker_name', p_worker_name, 'seen', 0);
    end if;
    -- A last_run_at in the future was written before the clock was set back. If it were believed, no run would be
    -- recorded and prev would not move until that time.
    if c.tick is null and v_own is null
       and c.last_run_at between clock_timestamp() - interval '2 seconds' and clock_timestamp() then
        v_from_xid := pg_snapshot_xmax(c.prev);
        if not exists (select from (select o.id
                                      from public.event_outbox o
                                     where o.event_domain = c.event_domain and o.xact_id >= v_from_xid
                                     order by o.xact_id
                                     limit 1) new)
           and not exists (select from pg_snapshot_xip(c.prev) x(xid)
                            cross join lateral (
                                  select o.id
                                    from public.event_outbox o
                                   where o.event_domain = c.event_domain and o.xact_id between x.xid and x.xid
                                     and (o.xact_id = c.own_xid and o.event_seq <= c.own_seq) is not true
                                   order by o.xact_id
                                   limit 1) ended) then
            return jsonb_build_object(
                'status', 'ran', 'worker_name', p_worker_name, 'seen', 0, 'attempts_written', 0, 'skipped', 0,
                'dead_lettered', 0, 'more', false,
                'cursor_event_id', c.last_event_id, 'cursor_created_at', c.last_created_at);
        end if;
    end if;

    select w.* into c from public.iu_route_worker_cursor w where w.worker_name = p_worker_name for update;
    p_batch_limit := least(p_batch_limit, c.page_limit, (c.failed_events + 1) / 2);

    -- The routes are read once: a route that changes during the batch must not take an event twice, or miss it. The
    -- number of attempts of a decision is computed by route as well; it is 1 if the route shares no events with others.
    -- That is the usual case, and needs no look-up for each event.
    select array_agg(x.route), array_agg(x.route_code) filter (where x.enabled and not x.dry_run),
           array_agg(x.event_stream || ' ' || x.event_type) filter (where x.live),
           jsonb_object_agg(x.route_code, x.n) filter (where x.enabled and x.n > 1), max(x.n),
           exists (select from public.iu_route_worker_cursor w
                    where w.event_domain = c.event_domain and w.worker_name <> c.worker_name)
      into v_routes, v_lives, v_live_kinds, v_counts, v_fan_out, v_shared
      from (select r as route, r.route_code, r.event_type, r.event_stream, r.enabled, r.dry_run,
                   count(*) filter (where r.enabled) over kind as n,
                   bool_and(not r.dry_run) filter (where r.enabled) over kind as live
              from public.iu_outbound_route r
             where r.event_domain = c.event_domain
            window kind as (partition by r.event_type, r.event_stream)) x;
    -- The live routes that queue events, each with the switch that holds it (012).
    if v_lives is not null then
        v_queues := public.fn_iu_delivery_queued_routes(v_routes);
    end if;

    loop
        v_pass := v_pass + 1;
        if v_pass = 1 then
            v_fresh := c.tick is null;
            v_from_xid := pg_snapshot_xmax(c.prev);
            if v_fresh then
                -- A cursor that has never taken a tick does not know which events were read before it was created.
                c.fresh_seq := nullif(c.hi_seq, 0);
            end if;
            -- The tick is the snapshot of this statement. The sequence is read after the snapshot, so each event that
            -- is visible in the tick has a number not beyond the one that is read.
            select t.tick, pg_snapshot_xmax(t.tick), x.open,
                   array(select p.xid from pg_snapshot_xip(c.prev) p(xid) where pg_visible_in_snapshot(p.xid, t.tick)),
                   case when v_fresh then s.last_value - (not s.is_called)::integer else c.hi_seq end,
                   case when v_fresh then f.floor else c.tick_floor end
              into c.tick, v_to_xid, v_open, v_resolved, c.hi_seq, c.tick_floor
              from (select case when v_fresh then public.fn_iu_outbox_tick() else c.tick end as tick offset 0) t
             cross join lateral (select array(select pg_snapshot_xip(t.tick)) as open offset 0) x
             cross join public.event_outbox_event_seq s
             cross join lateral (
                   select min(q.event_seq) as floor
                     from (select o.event_seq
                             from public.event_outbox o
                            where v_fresh and o.event_domain = c.event_domain
                              and o.xact_id >= v_from_xid and o.xact_id < pg_snapshot_xmax(t.tick)
                              and o.xact_id <> all (x.open)
                            order by o.xact_id) q) f;
            if v_fresh and (v_to_xid < v_from_xid or pg_snapshot_xmin(c.tick) < pg_snapshot_xmin(c.prev)) then
                raise exception 'the tick % lies before the cursor %', c.tick, c.prev
                    using errcode = 'serialization_failure', hint = 'Run the worker in READ COMMITTED.';
            end if;
            v_after_seq := coalesce(c.pos_seq, -9223372036854775808);
            v_after_id := coalesce(c.pos_id, '00000000-0000-0000-0000-000000000000');
            v_low_seq := case when c.pos_seq >= c.tick_floor then c.pos_seq else c.tick_floor - 1 end;
            v_low_id := case when c.pos_seq >= c.tick_floor then c.pos_id
                             else 'ffffffff-ffff-ffff-ffff-ffffffffffff' end;
        else
            -- A tick of an earlier batch does not cover later commits, so there may be more events, and the batch's own
            -- events would overtake older ones of their subject. They wait for the next batch, which takes a tick
            -- itself. That tick also covers the transaction that is remembered in own_xid, where only one fits at a
            -- time.
            v_more := not v_fresh;
            exit when not v_done or v_own is null or v_more or v_seen >= p_batch_limit;
            v_resolved := array[v_own];
            v_from_xid := null;
            v_to_xid := null;
            v_after_seq := coalesce(c.own_seq, -9223372036854775808);
            v_after_id := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
            v_low_seq := null;
        end if;

        select array_agg(q.id), array_agg(q.event_type), array_agg(q.event_stream), array_agg(q.event_seq),
               array_agg(q.traceparent), array_agg(q.created_at), count(*),
               case when v_live_kinds <> '{}' then array_agg(q.event_stream || ' ' || q.event_type) end
          into v_ids, v_types, v_streams, v_seqs, v_contexts, v_created, v_page, v_kinds
          from (select u.id, u.event_type, u.event_stream, u.event_seq, u.traceparent, u.created_at
                  from (select r.id, r.event_type, r.event_stream, r.event_seq, r.traceparent, r.created_at
                          from unnest(v_resolved) x(xid)
                         cross join lateral (
                               select o.id, o.event_type, o.event_stream, o.event_seq,
                                      public.fn_iu_trace_context(o.traceparent) as traceparent, o.created_at
                                 from public.event_outbox o
                                where o.event_domain = c.event_domain and o.xact_id <= x.xid
                                  and (o.xact_id, o.event_seq, o.id) > (x.xid, v_after_seq, v_after_id)
                                  and (o.xact_id = c.own_xid and o.event_seq <= c.own_seq) is not true
                                order by o.xact_id, o.event_seq, o.id
                                limit p_batch_limit - v_seen) r
                        union all
                        (select o.id, o.event_type, o.event_stream, o.event_seq,
                                public.fn_iu_trace_context(o.traceparent) as traceparent, o.created_at
                           from public.event_outbox o
                          where o.event_domain = c.event_domain
                            and (o.event_seq, o.id) > (v_low_seq, v_low_id)
                            and o.xact_id >= v_from_xid and o.xact_id < v_to_xid
                            and o.xact_id <> all (v_open)
                            and (o.xact_id = c.own_xid and o.event_seq <= c.own_seq) is not true
                          order by o.event_seq, o.id
                          limit p_batch_limit - v_seen)) u
                 order by u.event_seq, u.id
                 limit p_batch_limit - v_seen) q;

        -- The cost of a batch is its attempts, and an event has one for each of its routes.
        v_cut := case when v_fan_out > 10 then public.fn_iu_route_page(c.event_domain, v_types, v_streams, v_asked) end;
        -- An event that made a batch fail is taken alone. The events before it are routed first.
        if c.failed_event is not null and v_pass = 1 then
            v_place := array_position(v_ids, c.failed_event);
            v_given_up := v_place = 1 and c.failures >= 5;
            v_cut := least(v_cut, v_place - (v_place > 1)::integer);
        end if;
        if v_cut < v_page then
            p_batch_limit := v_seen + v_cut;
            v_page := v_cut;
            v_ids := v_ids[:v_cut];
            v_types := v_types[:v_cut];
            v_streams := v_streams[:v_cut];
            v_seqs := v_seqs[:v_cut];
            v_contexts := v_contexts[:v_cut];
            v_created := v_created[:v_cut];
            v_kinds := v_kinds[:v_cut];
        end if;
        if v_given_up then
            select array_agg(f.route_code), array_agg(c.failed_event), array_agg('the batch failed: ' || c.failed_why)
              into v_failed_route, v_failed_id, v_failed_why
              from (select coalesce(r.route_code, '(none)') as route_code
                      from (select 1) one
                      left join unnest(v_routes) r
                        on r.event_type = v_types[1] and r.event_stream = v_streams[1] and r.enabled) f
             where coalesce(c.failed_route, f.route_code) = f.route_code
               and not exists (select from public.iu_route_attempt a
                                where a.idempotency_key = 'outbound:' || f.route_code || ':' || c.failed_event offset 0);
        end if;

        -- Each event of the page is compared with each route, so a long list of routes is reduced first.
        v_here := case when cardinality(v_routes) > 64 and v_page > 0
                       then public.fn_iu_route_candidates(v_routes, v_types, v_streams) else v_routes end;

        -- Route the page in one statement. If that fails because of one event, halve the page until the event is alone.
        -- If every route of every event of the page is live, no attempt is written here.
        v_parts := case when v_page > 0 and (v_live_kinds @> v_kinds) is not true
                             and (v_given_up and c.failed_route is null) is not true
                        then array[1, v_page] else '{}' end;
        while cardinality(v_parts) > 0 loop
            v_lo := v_parts[cardinality(v_parts) - 1];
            v_hi := v_parts[cardinality(v_parts)];
            v_parts := trim_array(v_parts, 2);
            begin
                with written as (
                    insert into public.iu_route_attempt
                        (event_ref, route_kind, route_code, status, decision, delivered,
                         idempotency_key, attempt_no, route_count, traceparent)
                    select k.id, 'outbound', coalesce(r.route_code, '(none)'),
                           case when r.route_code is null then 'skipped' else 'dry_run' end,
                           case when r.route_code is not null then 'dry_run'
                                when exists (select from unnest(v_here) d
                                              where d.event_domain = c.event_domain and d.event_type = k.event_type
                                                and d.event_stream = k.event_stream) then 'route_disabled'
                                else 'no_route' end,
                           false,
                           'outbound:' || coalesce(r.route_code, '(none)') || ':' || k.id, 1,
                           coalesce((v_counts ->> r.route_code)::smallint, 1), k.traceparent
                      from unnest(v_ids[v_lo:v_hi], v_types[v_lo:v_hi], v_streams[v_lo:v_hi], v_contexts[v_lo:v_hi])
                           with ordinality k(id, event_type, event_stream, traceparent, n)
                      left join unnest(v_here) r
                        on r.event_domain = c.event_domain and r.event_type = k.event_type
                       and r.event_stream = k.event_stream and r.enabled
                     where r.route_code is null or r.dry_run
                     order by k.n
                    on conflict (idempotency_key, attempt_no) do nothing
                    returning status)
                select count(*), count(*) filter (where w.status = 'skipped') into v_count, v_skip from written w;
                v_attempts := v_attempts + v_count;
                v_skipped := v_skipped + v_skip;
            exception when others or assert_failure then
                get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
                if left(v_state, 2) <> all (v_faults) then
                    raise;
                end if;
                if v_lo < v_hi then
                    v_parts := v_parts || array[(v_lo + v_hi) / 2 + 1, v_hi, v_lo, (v_lo + v_hi) / 2];
                else
                    for v_bad in
                        select coalesce(r.route_code, '(none)') as route_code
                          from (select 1) one
                          left join unnest(v_here) r
                            on r.event_domain = c.event_domain and r.event_type = v_types[v_lo]
                           and r.event_stream = v_streams[v_lo] and r.enabled and r.dry_run
                    loop
                        v_failed_id := v_failed_id || v_ids[v_lo];
                        v_failed_route := v_failed_route || v_bad.route_code;
                        v_failed_why := v_failed_why || (v_state || ': ' || v_message);
                    end loop;
                end if;
            end;
        end loop;

        -- Routes that are live deliver. Those with a target outside the database are queued here, the others are called
        -- for each event below. While a switch is closed, a queued delivery waits, and an attempt records the reason.
        if v_queues <> '{}' and v_page > 0 and (v_given_up and c.failed_route is null) is not true then
            with routes as materialized (
                select r.route_code, r.event_domain, r.event_type, r.event_stream,
                       r.delivery_policy ->> 'order' = 'subject' as ordered, v_queues ->> r.route_code as lock
                  from unnest(v_here) r
                 where v_queues ? r.route_code
            ), queued as (
                insert into public.iu_route_delivery
                    (worker_name, route_code, event_ref, subject_key, attempt_no, route_count, traceparent)
                select p_worker_name, r.route_code, k.id,
                       case when r.ordered
                            then (select hashtextextended(coalesce(o.event_subject_ref::text, o.canonical_address), 0)
                                    from public.event_outbox o where o.id = k.id) end,
                       case when r.lock is null then 1 else 2 end,
                       coalesce((v_counts ->> r.route_code)::smallint, 1), k.traceparent
                  from unnest(v_ids, v_types, v_streams, v_contexts, v_seqs)
                       with ordinality k(id, event_type, event_stream, traceparent, event_seq, n)
                  join routes r
                    on r.event_domain = c.event_domain and r.event_type = k.event_type and r.event_stream = k.event_stream
                 -- The idempotency key is checked before an event is queued: an event that was decided once is not
                 -- delivered again when it is read again. An event with a number drawn after the previous tick, on a
                 -- domain with one worker, cannot have been decided before. All other events are looked up one by one
                 -- (offset 0), because a join would be planned with the size of the table at the beginning of the
                 -- session.
                 where k.event_seq > c.fresh_seq and not v_shared
                    or not exists (select from public.iu_route_attempt a
                                    where a.idempotency_key = 'outbound:' || r.route_code || ':' || k.id offset 0)
                   and not exists (select from public.iu_route_delivery d
                                    where d.event_ref = k.id and d.route_code || '' = r.route_code offset 0)
                 order by k.n, r.route_code
                returning id, route_code, event_ref, route_count, traceparent)
            select count(*), max(q.id), jsonb_agg(q) filter (where v_queues ->> q.route_code is not null)
              into v_count, v_last_id, v_held
              from queued q;
            v_queued := v_queued + v_count;
            if v_last_id < c.queued_id then
                -- The sequence of ids was set back, or the database was moved without it: waiting rows may have higher
                -- ids.
                select max(d.id) into v_last_id from public.iu_route_delivery d;
            end if;
            c.queued_id := coalesce(v_last_id, c.queued_id);
            if v_held is not null then
                insert into public.iu_route_attempt
                    (event_ref, route_kind, route_code, status, decision, delivered,
                     idempotency_key, attempt_no, route_count, traceparent)
                select q.event_ref, 'outbound', q.route_code, 'pending', v_queues ->> q.route_code, false,
                       'outbound:' || q.route_code || ':' || q.event_ref, 1, q.route_count, q.traceparent
                  from jsonb_to_recordset(v_held) q(route_code text, event_ref uuid, route_count smallint, traceparent text)
                on conflict (idempotency_key, attempt_no) do nothing;
                get diagnostics v_count = row_count;
                v_attempts := v_attempts + v_count;
            end if;
        end if;
        if not v_queues ?& v_lives and v_page > 0 then
            for v_live in
                select k.id, r.route_code
                  from unnest(v_ids, v_types, v_streams) with ordinality k(id, event_type, event_stream, n)
                  join unnest(v_here) r
                    on r.event_domain = c.event_domain and r.event_type = k.event_type
                   and r.event_stream = k.event_stream and r.enabled and not r.dry_run
                   and not v_queues ? r.route_code
                 where not exists (select from public.iu_route_attempt a
                                    where a.idempotency_key = 'outbound:' || r.route_code || ':' || k.id offset 0)
                   and (v_given_up and coalesce(c.failed_route, r.route_code) = r.route_code) is not true
                 order by k.n, r.route_code
            loop
                begin
                    select to_jsonb(o) into v_event from public.event_outbox o where o.id = v_live.id;
                    v_decision := public.fn_iu_route_dispatch(v_live.route_code, v_live.id, v_event);
                    insert into public.iu_route_attempt
                        (event_ref, route_kind, route_code, status, decision, delivered,
                         idempotency_key, attempt_no, route_count, traceparent)
                    values (v_live.id, 'outbound', v_live.route_code,
                            case v_decision when 'delivered' then 'sent' when 'dry_run' then 'dry_run' else 'skipped' end,
                            v_decision, v_decision = 'delivered',
                            'outbound:' || v_live.route_code || ':' || v_live.id, 1,
                            coalesce((v_counts ->> v_live.route_code)::smallint, 1),
                            public.fn_iu_trace_context(v_event ->> 'traceparent'))
                    on conflict (idempotency_key, attempt_no) do nothing;
                    get diagnostics v_count = row_count;
                    v_attempts := v_attempts + v_count;
                    v_skipped := v_skipped + case v_decision when 'route_disabled' then v_count else 0 end;
                    v_delivered := v_delivered + case v_decision when 'delivered' then v_count else 0 end;
                exception when others or query_canceled or assert_failure then
                    get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
                    if v_state ~ v_system then
                        -- This error fails the batch. The caller learns the event and the route from it, and reports
                        -- them (021).
                        raise exception using errcode = v_state, message = v_message, schema = 'public',
                              table = 'iu_outbound_route', column = v_live.route_code, constraint = v_live.id::text;
                    end if;
                    v_failed_id := v_failed_id || v_live.id;
                    v_failed_route := v_failed_route || v_live.route_code;
                    v_failed_why := v_failed_why || (v_state || ': ' || v_message);
                end;
            end loop;
        end if;

        -- A failed event gets a failed attempt and a dead letter with a snapshot of the event.
        if v_failed_id is not null then
            for v_bad in
                select f.id, f.route_code, f.why, 'outbound:' || f.route_code || ':' || f.id as key, 1 as attempt_no,
                       case when v_given_up and coalesce(c.failed_route, f.route_code) = f.route_code
                            then 'batch_failed' else 'worker_process_error' end as code
                  from unnest(v_failed_id, v_failed_route, v_failed_why) with ordinality f(id, route_code, why, n)
                 order by f.n
            loop
                -- If the dead letter exists already, it is locked before the attempt is written: the lock order of 024.
                perform from public.iu_route_dead_letter d where d.idempotency_key = v_bad.key for update;
                begin
                    -- If even writing the attempt ends the server process, it is given up after 10 more failures.
                    if v_given_up and c.failures >= 15 and c.failed_why !~ 'SQLSTATE' then
                        raise exception 'writing it fails the batch' using errcode = 'raise_exception';
                    end if;
                    insert into public.iu_route_attempt
                        (event_ref, route_kind, route_code, status, decision, delivered, failure_code,
                         idempotency_key, attempt_no, route_count, traceparent)
                    values (v_bad.id, 'outbound', v_bad.route_code, 'failed', 'dead_letter', false, v_bad.code,
                            v_bad.key, 1, coalesce((v_counts ->> v_bad.route_code)::smallint, 1),
                            v_contexts[array_position(v_ids, v_bad.id)])
                    on conflict (idempotency_key, attempt_no) do nothing;
                    get diagnostics v_count = row_count;
                    v_attempts := v_attempts + v_count;
                exception when others or query_canceled or assert_failure then
                    -- Even the failed attempt cannot be written. The dead letter below then holds the complete
                    -- information.
                    get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
                    if left(v_state, 2) <> all (v_faults) and (v_given_up and v_state ~ '^(40|55|57014|XX)') is not true then
                        raise;
                    end if;
                    v_bad.why := v_bad.why || '; audit: ' || v_message;
                    v_bad.attempt_no := 0;
                end;
                insert into public.iu_route_dead_letter
                    (worker_name, event_ref, route_code, idempotency_key, attempt_no, event_snapshot,
                     failure_code, failure_detail, created_at)
                select p_worker_name, o.id, v_bad.route_code, v_bad.key, v_bad.attempt_no,
                       public.fn_iu_event_snapshot(o.id), v_bad.code, left(v_bad.why, 10000),
                       -- Replays go by time: the dead letters of one batch keep the order of their events.
                       now() + v_dead * interval '1 microsecond'
                  from public.event_outbox o
                 where o.id = v_bad.id
                on conflict (idempotency_key) do update
                   set resolved_at = null, resolution = null, failure_code = excluded.failure_code,
                       failure_detail = excluded.failure_detail, event_snapshot = excluded.event_snapshot;
                v_dead := v_dead + 1;
            end loop;
            v_failed_id := null;
            v_failed_route := null;
            v_failed_why := null;
        end if;

        if v_page > 0 then
            -- created_at is set by the producer: infinity or a year far in the future would never be replaced as the
            -- latest time.
            v_last_created := greatest('epoch', least(v_created[v_page], clock_timestamp()));
            if c.last_created_at is null or (v_last_created, v_ids[v_page]) > (c.last_created_at, c.last_event_id) then
                c.last_created_at := v_last_created;
                c.last_event_id := v_ids[v_page];
            end if;
        end if;

        if v_pass = 1 then
            v_done := v_page < p_batch_limit;
            if v_done then
                -- The tick is consumed, and with it the remembered own events that it covers.
                c.prev := c.tick;
                c.tick := null;
                c.tick_floor := null;
                c.pos_seq := null;
                c.pos_id := null;
                if pg_visible_in_snapshot(c.own_xid, c.prev) then
                    c.own_xid := null;
                    c.own_seq := null;
                end if;
            else
                c.pos_seq := v_seqs[v_page];
                c.pos_id := v_ids[v_page];
            end if;
        elsif v_page > 0 then
            c.own_xid := v_own;
            c.own_seq := v_seqs[v_page];
        end if;
        v_seen := v_seen + v_page;
        exit when v_pass = 2;
    end loop;

    if c.failures > 0 and (v_done or v_given_up or v_ids[1] = c.failed_event
                           or c.failed_event is null and (v_seen >= c.failed_events) is not false) then
        c.failures := 0;
        c.failed_events := null;
        c.failed_event := null;
        c.failed_route := null;
    end if;
    -- The page size is also limited by time: when a batch comes near its deadline, the next page is halved.
    if clock_timestamp() > statement_timestamp() + interval '10 seconds' then
        c.page_limit := greatest(1, v_seen / 2);
    elsif c.page_limit <= v_seen and clock_timestamp() < statement_timestamp() + interval '2 seconds' then
        c.page_limit := case when c.page_limit < v_asked / 2 then c.page_limit * 2 end;
    end if;

    v_answer := jsonb_build_object(
        'status', 'ran', 'worker_name', p_worker_name, 'seen', v_seen, 'attempts_written', v_attempts,
        'skipped', v_skipped, 'delivered', v_delivered, 'queued', v_queued, 'dead_lettered', v_dead,
        'more', v_more or v_seen >= p_batch_limit,
        'cursor_event_id', c.last_event_id, 'cursor_created_at', c.last_created_at,
        'lineage', c.lineage, 'xact_id', pg_current_xact_id()::text);

    update public.iu_route_worker_cursor w
       set last_created_at = c.last_created_at, last_event_id = c.last_event_id,
           prev = c.prev, tick = c.tick, tick_floor = c.tick_floor, pos_seq = c.pos_seq, pos_id = c.pos_id,
           own_xid = c.own_xid, own_seq = c.own_seq, hi_seq = greatest(w.hi_seq, c.hi_seq),
           fresh_seq = c.fresh_seq, queued_id = c.queued_id, page_limit = c.page_limit,
           failures = c.failures, failed_events = c.failed_events - v_seen, failed_event = c.failed_event,
           failed_route = c.failed_route,
           total_seen = w.total_seen + v_seen, total_attempts = w.total_attempts + v_attempts,
           total_skipped = w.total_skipped + v_skipped, total_dead_lettered = w.total_dead_lettered + v_dead,
           last_run_at = clock_timestamp(), last_run_summary = v_answer
     where w.worker_name = p_worker_name;
    return v_answer;
end
$$;
comment on function public.fn_iu_route_worker_run(text, integer) is
    'Routes the next page of events: locks and moves the cursor, routes, and writes the attempts in one transaction. '
    'Answers the counts, or the status that kept it from working: master_gate_closed, worker_gate_closed, standby, '
    'foreign_history.';

-- Replay -------------------------------------------------------------------------------------------------

create function public.fn_iu_route_dead_letter_replay(p_dead_letter_id uuid, p_actor text default session_user)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    d          public.iu_route_dead_letter;
    r          public.iu_outbound_route;
    v_no       integer;
    v_key      bigint;
    v_new      integer;
    v_status   text;
    v_decision text;
    v_resolved boolean := false;
    v_state    text;
    v_message  text;
    v_audit    text;
    v_faults   constant text[] := array['22', '23', '44', '54', 'P0'];  -- as in the batch
    v_system   constant text := '^(08|40|53|57|58|XX|55P03)';           -- as in the batch
begin
    if not public.fn_iu_core_routes_enabled() then
        return jsonb_build_object('status', 'master_gate_closed', 'dead_letter_id', p_dead_letter_id, 'resolved', false);
    end if;
    if not public.fn_iu_route_worker_enabled() then
        return jsonb_build_object('status', 'worker_gate_closed', 'dead_letter_id', p_dead_letter_id, 'resolved', false);
    end if;

    select x.* into d from public.iu_route_dead_letter x where x.id = p_dead_letter_id for update;
    if not found then
        raise exception 'dead letter % does not exist', p_dead_letter_id
            using errcode = 'no_data_found', hint = 'Open ones: iu-listen dead-letter list';
    end if;
    if d.resolved_at is not null then
        return jsonb_build_object('status', 'already_resolved', 'dead_letter_id', d.id, 'resolved', true,
                                  'resolution', d.resolution, 'attempt_no', d.attempt_no);
    end if;

    -- A dead letter with a pending delivery is not decided here. Settling the delivery needs a lock on the dead
    -- letter, which this transaction holds. So a row that is being deleted is still visible here, and no statement
    -- below waits for the settlement: the settlement waits for this transaction.
    if exists (select from public.iu_route_delivery x
                where x.event_ref = d.event_ref and x.route_code || '' = d.route_code) then
        return jsonb_build_object('status', 'already_queued', 'dead_letter_id', d.id, 'event_id', d.event_ref,
                                  'route_code', d.route_code, 'decision', 'queued', 'attempt_no', d.attempt_no,
                                  'resolved', false);
    end if;

    select coalesce(max(a.attempt_no), 0) + 1 into v_no
      from public.iu_route_attempt a where a.idempotency_key = d.idempotency_key;
    select x.* into r from public.iu_outbound_route x where x.route_code = d.route_code;

    -- A route that the consumer delivers is queued; the delivery that arrives resolves the dead letter.
    if public.fn_iu_delivery_queued_routes(array[r]) <> '{}' then
        v_key := case when r.delivery_policy ->> 'order' = 'subject'
                      then hashtextextended(coalesce(d.event_snapshot ->> 'event_subject_ref',
                                                     d.event_snapshot ->> 'canonical_address'), 0) end;
        insert into public.iu_route_delivery
            (worker_name, route_code, event_ref, subject_key, attempt_no, due_at, failed_at, replayed_by, traceparent)
        select d.worker_name, d.route_code, d.event_ref, v_key, v_no, w.due_at,
               case when w.due_at < 'infinity' then w.due_at end, p_actor,
               public.fn_iu_trace_context(d.event_snapshot ->> 'traceparent')
          from (select case when v_key = (select x.subject_key
                                            from public.iu_route_delivery x
                                           where x.route_code = d.route_code and x.subject_key >= v_key
                                           order by x.subject_key, x.id
                                           limit 1)
                            then 'infinity' else now() end as due_at) w
        on conflict do nothing;
        get diagnostics v_new = row_count;
        update public.iu_route_dead_letter x
           set replay_count = x.replay_count + v_new, last_replay_at = clock_timestamp()
         where x.id = d.id and v_new > 0;
        return jsonb_build_object('status', case v_new when 1 then 'queued' else 'already_queued' end,
                                  'dead_letter_id', d.id, 'event_id', d.event_ref, 'route_code', d.route_code,
                                  'decision', 'queued', 'attempt_no', v_no, 'resolved', false);
    end if;

    -- The same decision as in the batch, for one event, from its snapshot.
    begin
        if r.enabled is not true then
            v_status := 'skipped';
            v_decision := case when r.route_code is null then 'no_route' else 'route_disabled' end;
        elsif r.dry_run then
            v_status := 'dry_run';
            v_decision := 'dry_run';
        else
            -- A snapshot that is too large lacks the payload, which is read from the outbox.
            if d.event_snapshot ? 'too_large' then
                select to_jsonb(o) into d.event_snapshot from public.event_outbox o where o.id = d.event_ref;
                if not found then
                    raise exception 'event % is too large for its dead letter, and is not in the log any more', d.event_ref
                        using errcode = 'raise_exception';
                end if;
            end if;
            v_decision := public.fn_iu_route_dispatch(d.route_code, d.event_ref, d.event_snapshot);
            v_status := case v_decision when 'delivered' then 'sent' when 'dry_run' then 'dry_run' else 'skipped' end;
        end if;
        insert into public.iu_route_attempt
            (event_ref, route_kind, route_code, status, decision, delivered, idempotency_key, attempt_no, traceparent)
        values (d.event_ref, d.route_kind, d.route_code, v_status, v_decision, v_status = 'sent',
                d.idempotency_key, v_no, public.fn_iu_trace_context(d.event_snapshot ->> 'traceparent'));
        -- If the route is disabled, the dead letter stays open; if the event never had a route, it is resolved.
        v_resolved := v_decision <> 'route_disabled';
    exception when others then
        get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
        -- A missing privilege of the caller is not a failure of the event.
        if v_state ~ v_system or v_state = '42501' then
            raise;
        end if;
        v_status := 'failed';
        v_decision := 'dead_letter';
        v_message := v_state || ': ' || v_message;
        begin
            insert into public.iu_route_attempt
                (event_ref, route_kind, route_code, status, decision, delivered, failure_code,
                 idempotency_key, attempt_no, traceparent)
            values (d.event_ref, d.route_kind, d.route_code, v_status, v_decision, false, 'worker_process_error',
                    d.idempotency_key, v_no, public.fn_iu_trace_context(d.event_snapshot ->> 'traceparent'));
        exception when others then
            get stacked diagnostics v_state = returned_sqlstate, v_audit = message_text;
            if left(v_state, 2) <> all (v_faults) then
                raise;
            end if;
            v_no := d.attempt_no;
            v_message := v_message || '; audit: ' || v_audit;
        end;
    end;

    update public.iu_route_dead_letter x
       set attempt_no = v_no, replay_count = x.replay_count + 1, last_replay_at = clock_timestamp(),
           failure_detail = case when v_status = 'failed' then v_message else x.failure_detail end,
           resolved_at = case when v_resolved then clock_timestamp() end,
           resolution = case when v_resolved then 'replayed by ' || p_actor || ': ' || v_decision end
     where x.id = d.id;

    return jsonb_build_object('status', case when v_resolved then 'replayed' else 'not_replayed' end,
                              'dead_letter_id', d.id, 'event_id', d.event_ref, 'route_code', d.route_code,
                              'decision', v_decision, 'attempt_no', v_no, 'resolved', v_resolved);
end
$$;
comment on function public.fn_iu_route_dead_letter_replay(uuid, text) is
    'Decides one dead letter again as attempt n + 1 with the same idempotency key, from its snapshot (from the outbox '
    'if the snapshot is too large). Resolves it unless it fails again, its route is disabled, or it is queued for '
    'delivery.';

-- Observability ------------------------------------------------------------------------------------------

create view public.v_iu_route_attempt_summary as
select a.route_kind, a.route_code, a.status, count(*) as attempts, max(a.created_at) as last_at
  from public.iu_route_attempt a
 group by a.route_kind, a.route_code, a.status;
comment on view public.v_iu_route_attempt_summary is
    'The number of attempts of each route and status, and the time of the last one.';

create view public.v_iu_event_backlog as
select c.worker_name, c.event_domain, count(u.id) as backlog, min(u.created_at) as oldest_created_at
  from public.iu_route_worker_cursor c
  left join lateral (
       select o.id, o.event_seq, o.xact_id, o.created_at
         from public.event_outbox o
        where o.event_domain = c.event_domain and o.xact_id >= pg_snapshot_xmax(c.prev)
       union all
       select o.id, o.event_seq, o.xact_id, o.created_at
         from pg_snapshot_xip(c.prev) x(xid)
         join public.event_outbox o on o.event_domain = c.event_domain and o.xact_id = x.xid) u
    on (pg_visible_in_snapshot(u.xact_id, c.tick) and (u.event_seq, u.id) <= (c.pos_seq, c.pos_id)) is not true
   and (u.xact_id = c.own_xid and u.event_seq <= c.own_seq) is not true
 group by c.worker_name, c.event_domain;
comment on view public.v_iu_event_backlog is
    'The number of committed events that each worker has not read, and the created_at of the oldest.';

create view public.v_iu_route_dead_letter_open as
select d.id, d.worker_name, d.event_ref, d.route_code, d.failure_code, d.failure_detail, d.attempt_no,
       d.replay_count, d.created_at, now() - d.created_at as age,
       public.fn_iu_trace_id(d.event_ref, d.event_snapshot ->> 'traceparent') as trace_id,
       public.fn_iu_span_id('dead_letter', d.id::text) as span_id
  from public.iu_route_dead_letter d
 where d.resolved_at is null;
comment on view public.v_iu_route_dead_letter_open is 'Dead letters that are not resolved.';

-- Health -------------------------------------------------------------------------------------------------

-- healthy answers one question: can this worker do its work, and does it work when there are events? It requires that
-- the worker is registered, that its history is believed, and that the master gate is open. While the worker gate is
-- open, it also requires that no silence is longer than three cadences, and that no event waits for longer than a
-- cadence without being routed. Other facts that an operator needs are listed as warnings, with a figure each.
--
-- condition describes the state in one word:
--
--   refusing      the worker does not believe its cursor, or its server takes no writes (condition_why: the reason)
--   gate_closed   a gate is closed (condition_why: the gate)
--   failing       its batches fail (condition_why: the error)
--   silent        no consumer was seen for three cadences, or ever (condition_why: since when)
--   standing_by   consumers run, but a session outside this list holds the lease (condition_why: its holder)
--   behind        it works, and events wait
--   polling       it works without a bell (condition_why: the reason)
--   idle          it works, and nothing waits
--
-- Times in the future are ignored until the clock has reached them, because the clock was set back.
create function public.fn_iu_route_worker_health(p_worker_name text)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    c           public.iu_route_worker_cursor;
    v_now       constant timestamptz := clock_timestamp();
    v_master    boolean := public.fn_iu_core_routes_enabled();
    v_gate      boolean := public.fn_iu_route_worker_enabled();
    v_opened    timestamptz;
    v_beat      timestamptz;
    v_cadence   double precision := 5;
    v_state     text;
    v_detail    text;
    v_polling   text;
    v_standbys  bigint := 0;
    v_site      text;
    v_strangers bigint;
    v_stranger  text;
    v_holder    text;
    v_seen      timestamptz;
    v_silent    double precision;
    v_unrun     double precision;
    v_waiting   double precision;
    v_backlog   bigint;
    v_oldest    timestamptz;
    v_dead      bigint;
    v_missing   bigint := 0;
    v_refusal   text;
    v_condition text;
    v_why       text;
    v_reasons   text[] := '{}';
    v_warnings  jsonb := '[]';
begin
    select w.* into c from public.iu_route_worker_cursor w where w.worker_name = p_worker_name;
    if not found then
        return jsonb_build_object('healthy', false, 'worker_name', p_worker_name, 'registered', false,
                                  'master_gate_open', v_master, 'worker_gate_open', v_gate,
                                  'condition', 'unregistered', 'condition_why', null,
                                  'reasons', jsonb_build_array('worker is not registered'), 'warnings', v_warnings);
    end if;

    -- 010 may be absent; then only the cursor tells when the worker last ran.
    if to_regclass('public.iu_consumer_heartbeat') is not null then
        select h.beat_at, h.cadence_seconds, h.state, h.state_detail, h.polling_why
          into v_beat, v_cadence, v_state, v_detail, v_polling
          from public.iu_consumer_heartbeat h
         where h.worker_name = p_worker_name and h.state not in ('stopped', 'standing_by')
           and h.beat_at <= v_now + interval '1 second'
         order by h.beat_at desc
         limit 1;
        v_cadence := coalesce(v_cadence, 5);
        select count(*), max(h.state_detail) into v_standbys, v_holder
          from public.iu_consumer_heartbeat h
         where h.worker_name = p_worker_name and h.state = 'standing_by'
           and h.beat_at between v_now - 3 * h.cadence_seconds * interval '1 second' and v_now + interval '1 second';
    end if;

    select d.updated_at into v_opened from public.dot_config d where d.key = 'iu_core.route_worker_enabled';
    select extract(epoch from v_now - max(t.at)), extract(epoch from v_now - max(t.at) filter (where t.what <> 'beat')),
           max(t.at) filter (where t.what <> 'gate')
      into v_silent, v_unrun, v_seen
      from (values ('gate', v_opened), ('beat', v_beat), ('run', c.last_run_at)) t(what, at)
     where t.at <= v_now + interval '1 second';
    v_refusal := public.fn_iu_outbox_refusal(c.lineage, c.prev);
    select b.backlog, b.oldest_created_at into v_backlog, v_oldest
      from public.v_iu_event_backlog b where b.worker_name = p_worker_name;
    -- created_at is set by the producer; a time in the future counts as now.
    v_waiting := extract(epoch from v_now - least(v_oldest, v_now));
    select count(*) into v_dead
      from public.iu_route_dead_letter d where d.worker_name = p_worker_name and d.resolved_at is null;

    -- 014 may be absent.
    if to_regclass('public.v_iu_completeness') is not null then
        select a.missing into v_missing from public.v_iu_completeness a where a.worker_name = p_worker_name;
    end if;

    if not v_master then
        v_reasons := v_reasons || 'master gate is closed'::text;
    end if;
    select s.site into v_site from public.iu_outbox_site s
     where s.accepted_at is null and s.seen_at > v_now - interval '1 minute' order by s.seen_at desc limit 1;
    if found then
        v_reasons := v_reasons || ('a consumer at ' || v_site || ' may not deliver: is this database a copy?');
    end if;
    -- 013 may be absent.
    if to_regprocedure('public.fn_iu_lease_holders(integer,text)') is not null then
        select count(*), string_agg(h.words, '; ') into v_strangers, v_stranger
          from public.fn_iu_lease_holders(726003, p_worker_name) h where h.stranger;
        if v_strangers > 0 then
            v_warnings := v_warnings || jsonb_build_object('code', 'foreign_lease', 'figure', v_strangers,
                                                           'detail', v_stranger);
        end if;
    end if;
    if v_refusal is not null then
        v_reasons := v_reasons || ('worker refuses: ' || v_refusal);
    end if;
    if v_state = 'refusing' then
        v_reasons := v_reasons || ('consumer refuses to work' || coalesce(': ' || v_detail, ''));
    end if;
    if v_state = 'failing' then
        v_reasons := v_reasons || ('every batch fails: ' || v_detail);
    end if;
    if v_gate and coalesce(v_silent > 3 * v_cadence, true) then
        v_reasons := v_reasons || coalesce('silent for ' || round(v_silent::numeric) || ' s, cadence is ' || v_cadence || ' s',
                                           'silent, and no clock tells since when');
    end if;
    -- A run is recorded at least once in a cadence, even if it finds nothing. An event that commits late looks old at
    -- once, but then a run was recorded a moment ago.
    if v_gate and v_master and v_backlog > 0 and v_waiting > v_cadence and coalesce(v_unrun > 1.5 * v_cadence, true) then
        v_reasons := v_reasons || (v_backlog || ' event(s) wait, the oldest for ' || round(v_waiting::numeric)
                                   || ' s, and nobody routes them');
    end if;

    -- 018 may be absent.
    if v_gate and to_regprocedure('public.fn_iu_progress_missing(text)') is not null then
        v_reasons := v_reasons || public.fn_iu_progress_missing(p_worker_name);
    end if;

    -- functions/delivery_status may be absent.
    if v_gate and v_master and to_regprocedure('public.fn_iu_delivery_progress_missing(text)') is not null then
        v_reasons := v_reasons || public.fn_iu_delivery_progress_missing(p_worker_name);
    end if;

    if not v_gate then
        v_warnings := v_warnings || jsonb_build_object('code', 'worker_gate_closed', 'figure', 1);
    end if;
    if v_backlog > 0 then
        v_warnings := v_warnings || jsonb_build_object('code', 'backlog', 'figure', v_backlog);
    end if;
    if v_dead > 0 then
        v_warnings := v_warnings || jsonb_build_object('code', 'open_dead_letters', 'figure', v_dead);
    end if;
    if v_missing > 0 then
        v_warnings := v_warnings || jsonb_build_object('code', 'completeness_missing', 'figure', v_missing,
                                                       'detail', 'iu-listen completeness');
    end if;
    -- 012 may be absent.
    if to_regclass('public.iu_delivery_unusable') is not null then
        select v_warnings || coalesce(jsonb_agg(
                   jsonb_build_object('code', 'no_target', 'figure', 1, 'detail', u.route_code || ': ' || u.why)
                   order by u.route_code), '[]')
          into v_warnings
          from public.iu_delivery_unusable u
          join public.iu_outbound_route r on r.route_code = u.route_code
         where u.worker_name = p_worker_name and r.enabled and not r.dry_run;
    end if;
    -- 012 may be absent.
    if to_regclass('public.iu_delivery_breaker') is not null then
        select v_warnings || coalesce(jsonb_agg(
                   jsonb_build_object('code', case when b.stopped_at is not null then 'dead_letter_budget' else 'breaker_open' end,
                                      'figure', 1, 'detail', b.route_code || coalesce(': ' || b.why, '')
                                      || case when b.stopped_at is not null then '; iu-listen delivery list' else '' end)
                   order by b.route_code), '[]')
          into v_warnings
          from public.iu_delivery_breaker b
          join public.iu_outbound_route r on r.route_code = b.route_code
         where (b.opened_at is not null or b.stopped_at is not null) and r.enabled and not r.dry_run
           and r.event_domain = c.event_domain;
    end if;
    if v_gate and v_polling is not null and v_silent <= 3 * v_cadence then
        v_warnings := v_warnings || jsonb_build_object('code', 'polling', 'figure', 1, 'detail', v_polling);
    end if;

    v_condition := case
        when v_refusal is not null or v_state = 'refusing' then 'refusing'
        when not v_master or not v_gate then 'gate_closed'
        when v_state = 'failing' and v_silent <= 3 * v_cadence then 'failing'
        when v_beat is null and v_standbys > 0 then 'standing_by'
        when coalesce(v_silent > 3 * v_cadence, true) or v_beat is null and coalesce(v_unrun > 3 * v_cadence, true)
            then case when v_standbys > 0 then 'standing_by' else 'silent' end
        when v_backlog > 0 and v_waiting > v_cadence then 'behind'
        when v_polling is not null then 'polling'
        else 'idle' end;
    v_why := case v_condition
        when 'refusing' then coalesce(v_refusal, v_detail)
        when 'failing' then v_detail
        when 'gate_closed' then case when v_master then 'worker gate' else 'master gate' end
        when 'silent' then coalesce('since ' || to_char(v_seen at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                                    'no consumer has ever run')
        when 'standing_by' then v_holder
        when 'behind' then v_backlog || ' event(s), the oldest for ' || round(v_waiting::numeric) || ' s'
        when 'polling' then v_polling end;

    return jsonb_build_object(
        'healthy', cardinality(v_reasons) = 0, 'worker_name', p_worker_name, 'registered', true,
        'condition', v_condition, 'condition_why', v_why,
        'master_gate_open', v_master, 'worker_gate_open', v_gate,
        'state', coalesce(v_state, 'no consumer'), 'last_beat_at', v_beat, 'last_run_at', c.last_run_at,
        'silent_seconds', round(v_silent::numeric, 3), 'cadence_seconds', v_cadence, 'standbys', v_standbys,
        'backlog', v_backlog, 'backlog_oldest_at', v_oldest, 'open_dead_letters', v_dead,
        'completeness_missing', v_missing, 'reasons', to_jsonb(v_reasons), 'warnings', v_warnings);
end
$$;
comment on function public.fn_iu_route_worker_health(text) is
    'The health of a worker: healthy (with reasons if false), condition (its state in one word), and warnings (other '
    'facts for an operator).';
