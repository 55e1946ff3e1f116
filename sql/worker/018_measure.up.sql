-- What is measured of the database once in a while, for metrics: lags, gates, the queue, and how late decisions were.
--
-- needs: 009, 013, 017
-- locks: nothing that exists

create view public.v_iu_trace_lag as
select t.name, greatest(n.last_id - f.id + 1, 0) as items, f.created_at as since,
       coalesce(t.last_export_at, t.created_at) as moved_at
  from public.iu_trace_cursor t
 cross join lateral (select max(a.id) as last_id from public.iu_route_attempt a) n
  left join lateral (
       select a.id, a.created_at
         from public.iu_route_attempt a
        where (a.xact_id, a.id) > (greatest(pg_snapshot_xmax(t.prev), t.attempt_xid), t.attempt_id)
          and a.xact_id < pg_snapshot_xmax(pg_current_snapshot())
        order by a.xact_id, a.id
        limit 1) f on true;
comment on view public.v_iu_trace_lag is
    'About how many attempts each export has not exported yet, numbers have gaps; since when the oldest '
    'waits, and when spans were last accepted.';

-- Progress -----------------------------------------------------------------------------------------------

-- Work that waits while none of it is done, beside routing, which fn_iu_route_worker_health (009) looks at itself. Ten
-- minutes: an export waits that long for a collector that is replaced, and a page of the audit pauses for minutes where
-- the database is slow.
create function public.fn_iu_progress_missing(p_worker_name text)
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
                   format('the audit of completeness has begun, and has looked at nothing for %s s',
                          round(extract(epoch from clock_timestamp() - a.paged_at)))
              from public.iu_audit a
             where a.worker_name = p_worker_name and a.started_at is not null
               and a.paged_at < clock_timestamp() - interval '10 minutes') s
$$;
comment on function public.fn_iu_progress_missing(text) is
    'Where work waits and none was done for ten minutes: the export of traces, the audit of completeness. One sentence each.';

-- One row a figure; seconds where the name says so. A lag has parts, because each has a remedy of its own:
--
--   open_transaction   somebody has written to the log and has not committed; only he can end it
--   backlog            committed and not looked at yet: the consumer is behind, or the gate is closed
--   dead_letter        looked at and not resolved: somebody has to decide
--   delivery           decided and not delivered yet: under way, waiting for its next attempt, or held
--   trace              decided and not at the collector yet
--
-- Of one worker: every consumer asks for its own, and counting what waits is what costs. Health is materialized, because
-- each column that is taken from it would count again.
create function public.fn_iu_measure(p_worker_name text)
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
        select c.worker_name from public.iu_route_worker_cursor c where c.worker_name = p_worker_name
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
               select count(*) as items, min(l.created_at) as since
                 from public.iu_route_dead_letter l
                where l.worker_name = w.worker_name and l.resolved_at is null) d
        union all
        select w.worker_name, 'delivery', d.items, d.since
          from worker w
         cross join lateral (
               select count(*) as items, min(l.created_at) as since
                 from public.iu_route_delivery l
                where l.worker_name = w.worker_name) d
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
    -- Where the emitter counts what it refuses.
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
comment on function public.fn_iu_measure(text) is
    'What metrics say of the database: one row a figure, of this worker or of all.';

-- How late decisions were: from the commit of the event to that of its attempt, where the server notes commits; else
-- from its insert to the moment that the attempt was written.
--
-- Whose an attempt is, only its event tells. So the youngest are walked through until there are enough of this worker's,
-- in the order of the index, and no more than ten times as many: beside a neighbour that is busier than that, some of a
-- period go uncounted.
create function public.fn_iu_decision_latency(p_worker_name text, p_after bigint, p_limit integer)
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
         -- One by one (limit 1): a join may begin with the events, all of them, where only the attempts are analyzed.
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
    'How many seconds after their commit (or insert: since_commit) the youngest attempts beyond an id were decided.';
