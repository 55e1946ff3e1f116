-- Routing: the batch of a worker, its gate, the delivery seam, the replay of one dead letter, health, and three views.
-- The steps of a batch are in functions/routing, those of a replay in functions/dead_letters, those of health in
-- functions/health.
--
-- kind: repeatable
-- needs: 005, 006, 007, 008, 021, functions/outbox_position, functions/trace_ids
-- calls: 012, functions/batch_failure, functions/dead_letters, functions/delivery_switches, functions/health, functions/routing
-- locks: nothing that other sessions use

-- Gate ---------------------------------------------------------------------------------------------------

-- Functions that every batch calls are written in plpgsql: their plans are kept for the session. A SQL function that
-- sets its search_path cannot be inlined and is planned again at each call, which takes a considerable part of the time
-- of a small batch.
create or replace function public.fn_iu_route_worker_enabled()
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

create or replace function public.fn_iu_route_deliver(p_route_code text, p_event_id uuid, p_event jsonb)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'the target kind of route % cannot be delivered to: event % was not delivered', p_route_code, p_event_id
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

create or replace function public.fn_iu_route_worker_run(p_worker_name text, p_batch_limit integer default 1000)
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
    c            public.iu_route_worker_cursor;
    v_refusal    text;
    v_own_xid    xid8;
    v_fresh      boolean;
    v_limit      integer;
    v_all_routes public.iu_batch_routes;
    v_routes     public.iu_batch_routes;
    v_range      public.iu_batch_range;
    v_page       public.iu_batch_page;
    v_result     public.iu_batch_result;
    v_given_up   boolean := false;
    v_done       boolean;
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
    v_own_xid := pg_current_xact_id_if_assigned();

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
    if c.tick is null and v_own_xid is null
       and c.last_run_at between clock_timestamp() - interval '2 seconds' and clock_timestamp()
       and public.fn_iu_batch_idle(c) then
        return jsonb_build_object(
            'status', 'ran', 'worker_name', p_worker_name, 'seen', 0, 'attempts_written', 0, 'skipped', 0,
            'dead_lettered', 0, 'more', false,
            'cursor_event_id', c.last_event_id, 'cursor_created_at', c.last_created_at);
    end if;

    select w.* into c from public.iu_route_worker_cursor w where w.worker_name = p_worker_name for update;
    v_fresh := c.tick is null;
    v_limit := least(p_batch_limit, c.page_limit, (c.failed_events + 1) / 2);
    v_all_routes := public.fn_iu_batch_routes(c);
    v_range := public.fn_iu_batch_tick(c);
    -- A cursor that has never taken a tick does not know which events were read before it was created.
    c.fresh_seq := case when v_fresh then nullif(c.hi_seq, 0) else c.fresh_seq end;
    c.tick := v_range.tick;
    c.hi_seq := v_range.hi_seq;
    c.tick_floor := v_range.tick_floor;
    v_result := row(0, 0, 0, 0, 0, 0, c.queued_id, null, null, null)::public.iu_batch_result;

    -- The first pass reads the tick; the second one reads the events that this transaction wrote before the call.
    for v_pass in 1 .. 2 loop
        v_page := public.fn_iu_batch_page(c, v_range, v_all_routes, v_limit - v_result.seen, p_batch_limit);
        v_routes := v_all_routes;
        if v_page.size > 0 then
            -- Each event of the page is compared with each route, so a long list of routes is reduced first.
            if cardinality(v_routes.routes) > 64 then
                v_routes.routes := public.fn_iu_route_candidates(v_routes.routes, v_page.types, v_page.streams);
            end if;
            v_given_up := v_pass = 1 and c.failures >= 5 and v_page.ids[1] is not distinct from c.failed_event;
            if v_given_up then
                v_result := public.fn_iu_batch_give_up(c, v_page, v_routes, v_result);
            end if;
            if not (v_given_up and c.failed_route is null) then
                -- If every route of every event of the page is live, there is no dry run to record.
                if (v_routes.live_kinds @> v_page.kinds) is not true then
                    v_result := public.fn_iu_batch_decide(c, v_page, v_routes, v_result);
                end if;
                if v_routes.queues <> '{}' then
                    v_result := public.fn_iu_batch_enqueue(c, v_page, v_routes, v_result);
                end if;
            end if;
            if not v_routes.queues ?& v_routes.live then
                v_result := public.fn_iu_batch_call(c, v_page, v_routes, v_result, v_given_up);
            end if;
            if v_result.failed_ids is not null then
                v_result := public.fn_iu_batch_dead_letters(c, v_page, v_routes, v_result, v_given_up);
            end if;
        end if;
        c := public.fn_iu_batch_advance(c, v_page, case v_pass when 2 then v_own_xid end);
        v_result.seen := v_result.seen + v_page.size;
        -- A tick of an earlier batch does not cover later commits, so there may be more events, and the batch's own
        -- events would overtake older ones of their subject. They wait for the next batch, which takes a tick itself.
        -- That tick also covers the transaction that is remembered in own_xid, where only one fits at a time.
        v_done := v_pass = 2 or not v_page.is_full;
        exit when v_own_xid is null or not v_fresh or not v_done;
        v_range := public.fn_iu_batch_own_events(c, v_own_xid);
    end loop;
    return public.fn_iu_batch_finish(c, v_result, p_batch_limit, not v_fresh or v_page.is_full,
                                     v_done or v_given_up or v_page.ids[1] = c.failed_event);
end
$$;
comment on function public.fn_iu_route_worker_run(text, integer) is
    'Routes the next page of events: locks and moves the cursor, routes, and writes the attempts in one transaction. '
    'Answers the counts, or the status that kept it from working: master_gate_closed, worker_gate_closed, standby, '
    'foreign_history.';

-- Replay -------------------------------------------------------------------------------------------------

create or replace function public.fn_iu_route_dead_letter_replay(p_dead_letter_id uuid, p_actor text default session_user)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    d          public.iu_route_dead_letter;
    r          public.iu_outbound_route;
    v_no       integer;
    v_count    integer;
    v_decision text;
    v_resolved boolean := false;
    v_state    text;
    v_message  text;
    v_audit    text;
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
        v_count := public.fn_iu_dead_letters_queue(array[d.id], r.delivery_policy ->> 'order' = 'subject', p_actor);
        return jsonb_build_object('status', case v_count when 1 then 'queued' else 'already_queued' end,
                                  'dead_letter_id', d.id, 'event_id', d.event_ref, 'route_code', d.route_code,
                                  'decision', 'queued', 'attempt_no', v_no, 'resolved', false);
    end if;

    begin
        v_decision := public.fn_iu_dead_letter_decide(d, r, v_no);
        -- If the route is disabled, the dead letter stays open; if the event never had a route, it is resolved.
        v_resolved := v_decision <> 'route_disabled';
    exception when others then
        get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
        -- A missing privilege of the caller is not a failure of the event.
        if public.fn_iu_error_of_system(v_state) or v_state = '42501' then
            raise;
        end if;
        v_decision := 'dead_letter';
        v_message := v_state || ': ' || v_message;
        begin
            insert into public.iu_route_attempt
                (event_ref, route_kind, route_code, status, decision, delivered, failure_code,
                 idempotency_key, attempt_no, traceparent)
            values (d.event_ref, d.route_kind, d.route_code, 'failed', v_decision, false, 'worker_process_error',
                    d.idempotency_key, v_no, public.fn_iu_trace_context(d.event_snapshot ->> 'traceparent'));
        exception when others then
            get stacked diagnostics v_state = returned_sqlstate, v_audit = message_text;
            if not public.fn_iu_error_of_event(v_state) then
                raise;
            end if;
            v_no := d.attempt_no;
            v_message := v_message || '; audit: ' || v_audit;
        end;
    end;

    update public.iu_route_dead_letter x
       set attempt_no = v_no, replay_count = x.replay_count + 1, last_replay_at = clock_timestamp(),
           failure_detail = case when v_decision = 'dead_letter' then v_message else x.failure_detail end,
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

create or replace view public.v_iu_route_attempt_summary as
select a.route_kind, a.route_code, a.status, count(*) as attempts, max(a.created_at) as last_at
  from public.iu_route_attempt a
 group by a.route_kind, a.route_code, a.status;
comment on view public.v_iu_route_attempt_summary is
    'The number of attempts of each route and status, and the time of the last one.';

create or replace view public.v_iu_event_backlog as
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

create or replace view public.v_iu_route_dead_letter_open as
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
create or replace function public.fn_iu_route_worker_health(p_worker_name text)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    c         public.iu_route_worker_cursor;
    f         public.iu_health_facts;
    v_reasons text[];
begin
    select w.* into c from public.iu_route_worker_cursor w where w.worker_name = p_worker_name;
    if not found then
        return jsonb_build_object('healthy', false, 'worker_name', p_worker_name, 'registered', false,
                                  'master_gate_open', public.fn_iu_core_routes_enabled(),
                                  'worker_gate_open', public.fn_iu_route_worker_enabled(),
                                  'condition', 'unregistered', 'condition_why', null,
                                  'reasons', jsonb_build_array('worker is not registered'), 'warnings', jsonb_build_array());
    end if;
    f := public.fn_iu_health_facts(c);
    v_reasons := public.fn_iu_health_consumer(f) || public.fn_iu_health_progress(f, p_worker_name);
    return jsonb_build_object(
        'healthy', cardinality(v_reasons) = 0, 'worker_name', p_worker_name, 'registered', true,
        'master_gate_open', f.master_open, 'worker_gate_open', f.gate_open,
        'state', coalesce(f.state, 'no consumer'), 'last_beat_at', f.beat_at, 'last_run_at', c.last_run_at,
        'silent_seconds', round(f.silent_seconds::numeric, 3), 'cadence_seconds', f.cadence_seconds,
        'standbys', f.standbys, 'backlog', f.backlog, 'backlog_oldest_at', f.oldest_at,
        'open_dead_letters', f.dead_letters, 'completeness_missing', f.missing,
        'reasons', to_jsonb(v_reasons), 'warnings', public.fn_iu_health_warnings(f, c))
        || public.fn_iu_health_condition(f);
end
$$;
comment on function public.fn_iu_route_worker_health(text) is
    'The health of a worker: healthy (with reasons if false), condition (its state in one word), and warnings (other '
    'facts for an operator).';
