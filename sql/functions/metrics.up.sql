-- Figures of the database for metrics, read at a long interval: lags, gates, the NOTIFY queue, and the latency of
-- decisions.
--
-- kind: repeatable
-- needs: 008, 009, 012, 014, 017, functions/traces
-- locks: nothing that other sessions use

create or replace view public.v_iu_trace_lag as
select t.name, greatest(n.last_id - f.id + 1, 0) as items, f.created_at as since,
       coalesce(t.last_export_at, t.created_at) as moved_at
  from public.iu_trace_cursor t
 -- Not max(): with other scans disabled, PostgreSQL 16 and 17 may compute it from the whole index.
  left join lateral (select a.id as last_id from public.iu_route_attempt a order by a.id desc limit 1) n on true
  left join lateral (
       select a.id, a.created_at
         from public.iu_route_attempt a
        where (a.xact_id, a.id) > (greatest(pg_snapshot_xmax(t.prev), t.attempt_xid), t.attempt_id)
          and a.xact_id < pg_snapshot_xmax(pg_current_snapshot())
        order by a.xact_id, a.id
        limit 1) f on true;
comment on view public.v_iu_trace_lag is
    'For each trace export: about how many attempts are not exported yet (the ids have gaps), the created_at of the '
    'oldest one, and when spans were last accepted.';

-- Progress -----------------------------------------------------------------------------------------------

-- Detects waiting work that makes no progress, except routing, which fn_iu_route_worker_health checks itself. The limit
-- is ten minutes: a trace export may wait that long while a collector is replaced, and a pass of the completeness
-- check pauses for minutes when the database is slow.
create or replace function public.fn_iu_progress_missing(p_worker_name text)
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
    select coalesce(array_agg(s.why order by s.n, s.why), '{}')
      from (select 1 as n,
                   format('%s attempt(s) wait for the export of %s, and none was exported for %s s', l.items, l.name,
                          round(extract(epoch from clock_timestamp() - l.moved_at))) as why
              from public.v_iu_trace_lag l
             where l.items > 0
               and greatest(l.since, l.moved_at) < clock_timestamp() - interval '10 minutes'
            union all
            select 2,
                   format('the completeness check has checked no event for %s s',
                          round(extract(epoch from clock_timestamp() - a.paged_at)))
              from public.iu_completeness_pass a
             where a.worker_name = p_worker_name and a.started_at is not null
               and a.paged_at < clock_timestamp() - interval '10 minutes') s
$$;
comment on function public.fn_iu_progress_missing(text) is
    'One sentence for each work that waits and has made no progress for ten minutes: a trace export, or the '
    'completeness check.';

-- One row for each figure; a figure is in seconds if its name says so. A lag has parts, because each has its own
-- remedy:
--
--   open_transaction   a transaction has written to the outbox and has not committed; only its session can end it
--   backlog            events that are committed and not routed: the consumer is behind, or a gate is closed
--   dead_letter        open dead letters: an operator has to decide
--   delivery           pending deliveries: in flight, waiting for their next attempt, or paused
--   trace              attempts that are not exported to the collector
--
-- The figures are those of one worker: every consumer reads its own, because counting waiting rows is the main cost.
-- Waiting events and dead letters are counted up to 10 001, as in health: the age shows whether a larger backlog grows.
-- Pending deliveries, too, among the oldest 10 001 of each route: their index is by route, and several workers of a
-- domain share its routes. The oldest one of a route is the first one, because the ids ascend.
-- Health is materialized, because otherwise each column that is taken from it would count again.
create or replace function public.fn_iu_metrics(p_worker_name text)
returns table (worker_name text, what text, part text, figure double precision)
language sql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
    with worker as (
        select c.worker_name, c.event_domain from public.iu_route_worker_cursor c where c.worker_name = p_worker_name
    ), health as materialized (
        select w.worker_name, public.fn_iu_route_worker_health(w.worker_name) as j from worker w
    ), locks as materialized (
        select l.locktype, l.database, l.relation, l.mode, l.granted, l.transactionid, l.virtualtransaction, l.pid
          from pg_catalog.pg_locks l
    ), writing as (
        select distinct l.virtualtransaction, l.pid
          from locks l
         where l.locktype = 'relation' and l.mode = 'RowExclusiveLock' and l.granted
           and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
           and l.relation = 'public.event_outbox'::regclass
    ), unfinished as (
        select a.xact_start as since
          from writing w
          join pg_catalog.pg_stat_activity a on a.pid = w.pid
        union all
        select p.prepared
          from pg_catalog.pg_prepared_xacts p
         where exists (select from locks l
                         join writing w on w.virtualtransaction = l.virtualtransaction
                        where l.pid is null and l.locktype = 'transactionid' and l.transactionid = p.transaction)
    ), lag (worker_name, part, items, since) as (
        select h.worker_name, 'backlog', (h.j ->> 'backlog')::bigint, (h.j ->> 'backlog_oldest_at')::timestamptz
          from health h
        union all
        select w.worker_name, 'dead_letter', d.items, d.since
          from worker w
         cross join lateral (
               select count(*) as items, min(x.created_at) as since
                 from (select l.created_at
                         from public.iu_route_dead_letter l
                        where l.worker_name = w.worker_name and l.resolved_at is null
                        order by l.created_at
                        limit 10001) x) d
        union all
        select w.worker_name, 'delivery',
               (select count(*)
                  from (select
                          from public.iu_outbound_route r
                         cross join lateral (
                               select l.worker_name
                                 from public.iu_route_delivery l
                                where l.route_code = r.route_code
                                order by l.id
                                limit 10001) d
                         where r.event_domain = w.event_domain and d.worker_name = w.worker_name
                         limit 10001) x),
               (select min(d.created_at)
                  from public.iu_outbound_route r
                 cross join lateral (
                       select y.created_at
                         from (select l.id, l.worker_name, l.created_at
                                 from public.iu_route_delivery l
                                where l.route_code = r.route_code
                                order by l.id
                                limit 10001) y
                        where y.worker_name = w.worker_name
                        order by y.id
                        limit 1) d
                 where r.event_domain = w.event_domain)
          from worker w
        union all
        select null, 'open_transaction', count(*), min(u.since) from unfinished u
        union all
        select null, 'trace', coalesce(max(t.items), 0), min(t.since) from public.v_iu_trace_lag t
    )
    select null::text, 'gate', g.gate, coalesce(d.value = 'true', false)::integer::double precision
      from (values ('master', 'iu_core.routes_master_enabled'), ('worker', 'iu_core.route_worker_enabled'),
               ('delivery', 'iu_core.delivery_enabled')) g(gate, key)
      left join public.dot_config d on d.key = g.key
    union all
    select null, 'notification_queue', null, pg_notification_queue_usage()
    union all
    -- Only if the emitter counts its refusals.
    select null, 'refused_emits', null, coalesce(s.last_value, 0)
      from pg_catalog.pg_sequences s
     where s.schemaname = 'public' and s.sequencename = 'iu_emit_refused_seq'
    union all
    select h.worker_name, 'healthy', null, (h.j ->> 'healthy')::boolean::integer from health h
    union all
    select l.worker_name, f.what, l.part, f.figure
      from lag l
     cross join lateral (
           values ('lag_items', l.items::double precision),
                  ('lag_seconds', coalesce(greatest(extract(epoch from clock_timestamp() - l.since), 0), 0))) f(what, figure)
$$;
comment on function public.fn_iu_metrics(text) is
    'The figures for metrics: one row for each figure, of this worker or of the whole database.';

-- The latency of decisions: from the commit of the event to the commit of its attempt, if the server tracks commit
-- times; otherwise from the insert of the event to the time at which the attempt was written.
--
-- The worker of an attempt can be found only through its event. So the youngest attempts are read in the order of the
-- index until there are enough of this worker, but at most ten times as many. If another worker of the database is
-- busier than that, some decisions of a period are not counted.
create or replace function public.fn_iu_decision_latency(p_worker_name text, p_after bigint, p_limit integer)
returns table (last_id bigint, seconds double precision[], since_commit boolean)
language sql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
    with young as materialized (
        select y.xact_id, y.finished_at, o.xact_id as event_xact_id, o.created_at
          from (select a.id, a.event_ref, a.xact_id, a.finished_at, a.attempt_no
                  from public.iu_route_attempt a
                 where a.id > p_after
                 order by a.id desc
                 limit 10 * p_limit) y
         -- One by one (limit 1): a join might begin with all events if only the attempts were analyzed.
         cross join lateral (
               select e.event_domain, e.xact_id, e.created_at from public.event_outbox e where e.id = y.event_ref limit 1) o
         where y.attempt_no = 1
           and o.event_domain = (select c.event_domain from public.iu_route_worker_cursor c
                                  where c.worker_name = p_worker_name)
         order by y.id desc
         limit p_limit)
    select coalesce((select max(a.id) from public.iu_route_attempt a), 0),
           coalesce(array_agg(greatest(t.seconds, 0)) filter (where t.seconds is not null), '{}'),
           current_setting('track_commit_timestamp') = 'on'
      from young y
     cross join lateral (
           select extract(epoch from case when current_setting('track_commit_timestamp') = 'on'
                                          then public.fn_iu_trace_commit_at(y.xact_id)
                                               - public.fn_iu_trace_commit_at(y.event_xact_id)
                                          else y.finished_at - y.created_at end)::double precision) t(seconds)
$$;
comment on function public.fn_iu_decision_latency(text, bigint, integer) is
    'The latencies, in seconds, of the youngest attempts after p_after, from the commit of the event (or from its '
    'insert, if since_commit is false).';
