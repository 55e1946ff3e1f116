-- The parts of fn_iu_route_worker_health (009): the facts about a worker, and the judgement of each subject.
--
-- kind: repeatable
-- needs: 014, 021, 023, functions/outbox_position
-- calls: 009, 010, 012, functions/delivery_status, functions/metrics, functions/monitoring
-- locks: nothing that other sessions use

-- Facts --------------------------------------------------------------------------------------------------

-- Health is asked often, so it reads a bounded number of rows: waiting events and open dead letters are counted up to
-- 10 001, which means "more than 10 000". v_iu_event_backlog counts all waiting events; its algorithm, which also
-- determines the unread events here, is that of the batch (009). The parts of a backlog are
--
--   * the rest of a partly read tick: after its position by event_seq, and by transaction those that prev lists;
--   * the events of transactions that the last snapshot of the cursor (tick, otherwise prev) does not contain.
--
-- Each part is read in the order of its index, and only until the bound is reached. So neither the read part of a tick
-- nor the past of the outbox is read, and the age is that of the oldest event that was read. The settings are those of
-- the batch: the plan must not depend on the statistics.
--
-- Times in the future are ignored until the clock has reached them, because the clock was set back.
create or replace function public.fn_iu_health_facts(p_cursor public.iu_route_worker_cursor)
returns public.iu_health_facts
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set max_parallel_workers_per_gather = 0
set jit = off
as $$
declare
    c_bound  constant integer := 10001;
    c_low    constant bigint := -9223372036854775808;
    c_high   constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    v_seen   constant pg_snapshot := coalesce(p_cursor.tick, p_cursor.prev);
    f        public.iu_health_facts;
    v_now    constant timestamptz := clock_timestamp();
    v_opened timestamptz;
begin
    f.master_open := public.fn_iu_core_routes_enabled();
    f.gate_open := public.fn_iu_route_worker_enabled();
    f.refusal := public.fn_iu_outbox_refusal(p_cursor.lineage, p_cursor.prev);

    -- If the table of heartbeats is missing, only the cursor tells when the worker last ran.
    f.standbys := 0;
    if to_regclass('public.iu_consumer_heartbeat') is not null then
        select h.beat_at, h.cadence_seconds, h.state, h.state_detail, h.polling_why
          into f.beat_at, f.cadence_seconds, f.state, f.state_detail, f.polling_why
          from public.iu_consumer_heartbeat h
         where h.worker_name = p_cursor.worker_name and h.state not in ('stopped', 'standing_by')
           and h.beat_at <= v_now + interval '1 second'
         order by h.beat_at desc
         limit 1;
        select count(*), max(h.state_detail) into f.standbys, f.lease_detail
          from public.iu_consumer_heartbeat h
         where h.worker_name = p_cursor.worker_name and h.state = 'standing_by'
           and h.beat_at between v_now - 3 * h.cadence_seconds * interval '1 second' and v_now + interval '1 second';
    end if;
    f.cadence_seconds := coalesce(f.cadence_seconds, 5);

    select d.updated_at into v_opened from public.dot_config d where d.key = 'iu_core.route_worker_enabled';
    select extract(epoch from v_now - max(t.at)), extract(epoch from v_now - max(t.at) filter (where t.what <> 'beat')),
           max(t.at) filter (where t.what <> 'gate')
      into f.silent_seconds, f.unrun_seconds, f.seen_at
      from (values ('gate', v_opened), ('beat', f.beat_at), ('run', p_cursor.last_run_at)) t(what, at)
     where t.at <= v_now + interval '1 second';

    select count(*), min(u.created_at) into f.backlog, f.oldest_at
      from (select x.created_at
              from ((select o.created_at, o.xact_id, o.event_seq
                       from public.event_outbox o
                      where p_cursor.tick is not null and o.event_domain = p_cursor.event_domain
                        and (o.event_seq, o.id)
                            > (greatest(p_cursor.pos_seq, p_cursor.tick_floor - 1),
                               case when p_cursor.pos_seq >= p_cursor.tick_floor then p_cursor.pos_id else c_high end)
                        and o.event_seq <= p_cursor.hi_seq
                        and o.xact_id >= pg_snapshot_xmax(p_cursor.prev) and pg_visible_in_snapshot(o.xact_id, p_cursor.tick)
                      order by o.event_seq, o.id)
                    union all
                    select r.created_at, r.xact_id, r.event_seq
                      from pg_snapshot_xip(p_cursor.prev) t(xid)
                     cross join lateral (
                           select o.created_at, o.xact_id, o.event_seq
                             from public.event_outbox o
                            where o.event_domain = p_cursor.event_domain and o.xact_id <= t.xid
                              and (o.xact_id, o.event_seq, o.id) > (t.xid, coalesce(p_cursor.pos_seq, c_low),
                                                                    coalesce(p_cursor.pos_id, c_high))
                            order by o.xact_id, o.event_seq, o.id) r
                     where p_cursor.tick is not null and pg_visible_in_snapshot(t.xid, p_cursor.tick)
                    union all
                    select r.created_at, r.xact_id, r.event_seq
                      from pg_snapshot_xip(v_seen) t(xid)
                     cross join lateral (
                           select o.created_at, o.xact_id, o.event_seq
                             from public.event_outbox o
                            where o.event_domain = p_cursor.event_domain and o.xact_id between t.xid and t.xid
                            order by o.xact_id, o.event_seq) r
                    union all
                    (select o.created_at, o.xact_id, o.event_seq
                       from public.event_outbox o
                      where o.event_domain = p_cursor.event_domain and o.xact_id >= pg_snapshot_xmax(v_seen)
                      order by o.xact_id, o.event_seq)) x
             where (x.xact_id = p_cursor.own_xid and x.event_seq <= p_cursor.own_seq) is not true
             limit c_bound) u;
    -- created_at is set by the producer; a time in the future counts as now.
    f.waiting_seconds := extract(epoch from v_now - least(f.oldest_at, v_now));
    select count(*) into f.dead_letters
      from (select d.created_at
              from public.iu_route_dead_letter d
             where d.worker_name = p_cursor.worker_name and d.resolved_at is null
             order by d.created_at
             limit c_bound) l;
    select count(*) into f.missing
      from (select from public.iu_completeness_missing m
             where m.worker_name = p_cursor.worker_name and m.accepted_at is null and m.confirmed_at is not null
             limit c_bound) l;
    return f;
end
$$;
comment on function public.fn_iu_health_facts(public.iu_route_worker_cursor) is
    'The facts about the worker of this cursor.';

-- Reasons ------------------------------------------------------------------------------------------------

create or replace function public.fn_iu_health_consumer(f public.iu_health_facts)
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_reasons text[] := '{}';
    v_site    text;
begin
    if not f.master_open then
        v_reasons := v_reasons || 'master gate is closed'::text;
    end if;
    select s.site into v_site from public.iu_outbox_site s
     where s.accepted_at is null and s.seen_at > clock_timestamp() - interval '1 minute'
     order by s.seen_at desc
     limit 1;
    if found then
        v_reasons := v_reasons || ('a consumer at ' || v_site || ' may not deliver: is this database a copy?');
    end if;
    if f.refusal is not null then
        v_reasons := v_reasons || ('worker refuses: ' || f.refusal);
    end if;
    if f.state = 'refusing' then
        v_reasons := v_reasons || ('consumer refuses to work' || coalesce(': ' || f.state_detail, ''));
    end if;
    if f.state = 'failing' then
        v_reasons := v_reasons || ('every batch fails: ' || f.state_detail);
    end if;
    if f.gate_open and coalesce(f.silent_seconds > 3 * f.cadence_seconds, true) then
        v_reasons := v_reasons || coalesce(
            'silent for ' || round(f.silent_seconds::numeric) || ' s, cadence is ' || f.cadence_seconds || ' s',
            'silent for an unknown time');
    end if;
    return v_reasons;
end
$$;
comment on function public.fn_iu_health_consumer(public.iu_health_facts) is
    'Why a worker is not healthy: its gates, its history, and its consumer.';

-- A run is recorded at least once in a cadence, even if it finds nothing. An event that commits late looks old at once,
-- but then a run was recorded a moment ago.
create or replace function public.fn_iu_health_progress(f public.iu_health_facts, p_worker_name text)
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_reasons text[] := '{}';
begin
    if f.gate_open and f.master_open and f.backlog > 0 and f.waiting_seconds > f.cadence_seconds
       and coalesce(f.unrun_seconds > 1.5 * f.cadence_seconds, true) then
        v_reasons := v_reasons || (concat(least(f.backlog, 10000), case when f.backlog > 10000 then '+' end)
                                   || ' event(s) wait, the oldest for ' || round(f.waiting_seconds::numeric)
                                   || ' s: no consumer routes them');
    end if;
    if f.gate_open then
        v_reasons := v_reasons || public.fn_iu_progress_missing(p_worker_name);
    end if;
    if f.gate_open and f.master_open then
        v_reasons := v_reasons || public.fn_iu_delivery_progress_missing(p_worker_name);
    end if;
    return v_reasons;
end
$$;
comment on function public.fn_iu_health_progress(public.iu_health_facts, text) is
    'Why a worker is not healthy: what waits without progress, of routing, of the completeness check, the trace export '
    'and the retention, and of delivery.';

-- Warnings -----------------------------------------------------------------------------------------------

create or replace function public.fn_iu_health_warnings(f public.iu_health_facts, p_cursor public.iu_route_worker_cursor)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_warnings jsonb := '[]';
    v_count    bigint;
    v_detail   text;
begin
    select count(*), string_agg(h.description, '; ') into v_count, v_detail
      from public.fn_iu_lease_holders(726003, p_cursor.worker_name) h where h.unauthorized;
    if v_count > 0 then
        v_warnings := v_warnings || jsonb_build_object('code', 'foreign_lease', 'figure', v_count, 'detail', v_detail);
    end if;
    if not f.gate_open then
        v_warnings := v_warnings || jsonb_build_object('code', 'worker_gate_closed', 'figure', 1);
    end if;
    if f.backlog > 0 then
        v_warnings := v_warnings || jsonb_build_object('code', 'backlog', 'figure', f.backlog);
    end if;
    if f.dead_letters > 0 then
        v_warnings := v_warnings || jsonb_build_object('code', 'open_dead_letters', 'figure', f.dead_letters);
    end if;
    if f.missing > 0 then
        v_warnings := v_warnings || jsonb_build_object('code', 'completeness_missing', 'figure', f.missing,
                                                       'detail', 'iu-listen completeness');
    end if;
    v_warnings := v_warnings || public.fn_iu_health_delivery(p_cursor.worker_name, p_cursor.event_domain);
    if f.gate_open and f.polling_why is not null and f.silent_seconds <= 3 * f.cadence_seconds then
        v_warnings := v_warnings || jsonb_build_object('code', 'polling', 'figure', 1, 'detail', f.polling_why);
    end if;
    return v_warnings;
end
$$;
comment on function public.fn_iu_health_warnings(public.iu_health_facts, public.iu_route_worker_cursor) is
    'Facts about a worker that an operator needs although they do not make it unhealthy, as code, figure and detail.';

create or replace function public.fn_iu_health_delivery(p_worker_name text, p_domain text)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_unusable jsonb;
    v_paused   jsonb;
begin
    select coalesce(jsonb_agg(
               jsonb_build_object('code', 'no_target', 'figure', 1, 'detail', u.route_code || ': ' || u.why)
               order by u.route_code), '[]')
      into v_unusable
      from public.iu_delivery_unusable u
      join public.iu_outbound_route r on r.route_code = u.route_code
     where u.worker_name = p_worker_name and r.enabled and not r.dry_run;
    select coalesce(jsonb_agg(
               jsonb_build_object('code', case when b.stopped_at is not null then 'dead_letter_budget' else 'breaker_open' end,
                                  'figure', 1, 'detail', b.route_code || coalesce(': ' || b.why, '')
                                  || case when b.stopped_at is not null then '; iu-listen delivery list' else '' end)
               order by b.route_code), '[]')
      into v_paused
      from public.iu_delivery_breaker b
      join public.iu_outbound_route r on r.route_code = b.route_code
     where (b.opened_at is not null or b.stopped_at is not null) and r.enabled and not r.dry_run
       and r.event_domain = p_domain;
    return v_unusable || v_paused;
end
$$;
comment on function public.fn_iu_health_delivery(text, text) is
    'Warnings about live routes that do not deliver: the consumer has no target for them, the circuit breaker is open, or '
    'the budget of dead letters is used up.';

-- Condition ----------------------------------------------------------------------------------------------

create or replace function public.fn_iu_health_condition(f public.iu_health_facts)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_condition text;
    v_why       text;
begin
    v_condition := case
        when f.refusal is not null or f.state = 'refusing' then 'refusing'
        when not f.master_open or not f.gate_open then 'gate_closed'
        when f.state = 'failing' and f.silent_seconds <= 3 * f.cadence_seconds then 'failing'
        when f.beat_at is null and f.standbys > 0 then 'standing_by'
        when coalesce(f.silent_seconds > 3 * f.cadence_seconds, true)
             or f.beat_at is null and coalesce(f.unrun_seconds > 3 * f.cadence_seconds, true)
            then case when f.standbys > 0 then 'standing_by' else 'silent' end
        when f.backlog > 0 and f.waiting_seconds > f.cadence_seconds then 'behind'
        when f.polling_why is not null then 'polling'
        else 'idle' end;
    v_why := case v_condition
        when 'refusing' then coalesce(f.refusal, f.state_detail)
        when 'failing' then f.state_detail
        when 'gate_closed' then case when f.master_open then 'worker gate' else 'master gate' end
        when 'silent' then coalesce('since ' || to_char(f.seen_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                                    'no consumer has ever run')
        when 'standing_by' then f.lease_detail
        when 'behind' then concat(least(f.backlog, 10000), case when f.backlog > 10000 then '+' end)
                           || ' event(s), the oldest for ' || round(f.waiting_seconds::numeric) || ' s'
        when 'polling' then f.polling_why end;
    return jsonb_build_object('condition', v_condition, 'condition_why', v_why);
end
$$;
comment on function public.fn_iu_health_condition(public.iu_health_facts) is
    'The state of a worker in one word (condition), and the reason (condition_why).';
