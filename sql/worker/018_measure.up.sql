-- What is measured of the database once in a while, for metrics: lags, gates, the queue, and how late decisions were.
--
-- needs: 009, 013, 017
-- locks: nothing that exists

-- One row a figure; seconds where the name says so. A lag has parts, because each has a remedy of its own:
--
--   open_transaction   somebody has written to the log and has not committed; only he can end it
--   backlog            committed and not looked at yet: the consumer is behind, or the gate is closed
--   dead_letter        looked at and not resolved: somebody has to decide
--   trace              decided and not at the collector yet; about so many, numbers of attempts have gaps
--
-- Delivery is a part, too, as soon as there is any (012).
create view public.v_iu_measure as
with health as materialized (
    select h.worker_name, h.healthy, h.backlog, h.backlog_oldest_at from public.v_iu_worker_health h)
select null::text as worker_name, 'gate' as what, g.gate as part, coalesce(d.value = 'true', false)::integer::double precision as figure
  from (values ('master', 'iu_core.routes_master_enabled'), ('worker', 'iu_core.route_worker_enabled')) g(gate, key)
  left join public.dot_config d on d.key = g.key
union all
select null, 'notification_queue', null, pg_notification_queue_usage()
union all
select h.worker_name, 'healthy', null, h.healthy::integer from health h
union all
select l.worker_name, l.what, l.part, l.figure
  from (select h.worker_name, 'backlog' as part, h.backlog as items, h.backlog_oldest_at as since
          from health h
        union all
        select c.worker_name, 'dead_letter', count(d.id), min(d.created_at)
          from public.iu_route_worker_cursor c
          left join public.iu_route_dead_letter d on d.worker_name = c.worker_name and d.resolved_at is null
         group by c.worker_name
        union all
        select null, 'open_transaction', count(w.pid), min(w.xact_start)
          from (select a.pid, a.xact_start
                  from pg_catalog.pg_locks l
                  join pg_catalog.pg_stat_activity a on a.pid = l.pid
                 where l.locktype = 'relation' and l.mode = 'RowExclusiveLock' and l.granted
                   and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
                   and l.relation = 'public.event_outbox'::regclass) w
        union all
        select null, 'trace', coalesce(max(greatest(n.last_id - f.id + 1, 0)), 0), min(f.created_at)
          from public.iu_trace_cursor t
         cross join lateral (select max(a.id) as last_id from public.iu_route_attempt a) n
          left join lateral (
               select a.id, a.created_at
                 from public.iu_route_attempt a
                where (a.xact_id, a.id) > (greatest(pg_snapshot_xmax(t.prev), t.attempt_xid), t.attempt_id)
                  and a.xact_id < pg_snapshot_xmax(pg_current_snapshot())
                order by a.xact_id, a.id
                limit 1) f on true) s
 cross join lateral (
       values (s.worker_name, 'lag_items', s.part, s.items::double precision),
              (s.worker_name, 'lag_seconds', s.part,
               coalesce(greatest(extract(epoch from clock_timestamp() - s.since), 0), 0)::double precision)) l(worker_name, what, part, figure);
comment on view public.v_iu_measure is
    'What metrics say of the database: one row a figure, of a worker or of all.';

-- How late decisions were: from the commit of the event to that of its attempt, where the server notes commits; else
-- from its insert to the moment that the attempt was written.
create function public.fn_iu_decision_latency(p_worker_name text, p_after bigint, p_limit integer)
returns table (last_id bigint, seconds double precision[], since_commit boolean)
language sql
stable
set search_path = ''
as $$
    with young as materialized (
        select a.event_ref, a.xact_id, a.finished_at
          from public.iu_route_attempt a
         where a.id > p_after and a.attempt_no = 1
         order by a.id desc
         limit p_limit)
    select coalesce((select max(a.id) from public.iu_route_attempt a), 0),
           coalesce(array_agg(greatest(t.seconds, 0)) filter (where t.seconds is not null), '{}'),
           current_setting('track_commit_timestamp') = 'on'
      from young y
      join public.event_outbox o on o.id = y.event_ref
      join public.iu_route_worker_cursor c on c.worker_name = p_worker_name and c.event_domain = o.event_domain
     cross join lateral (
           select extract(epoch from case when current_setting('track_commit_timestamp') = 'on'
                                          then public.fn_iu_trace_commit_at(y.xact_id)
                                               - public.fn_iu_trace_commit_at(o.xact_id)
                                          else y.finished_at - o.created_at end)::double precision) t(seconds)
$$;
comment on function public.fn_iu_decision_latency(text, bigint, integer) is
    'How many seconds after their commit (or insert: since_commit) the youngest attempts beyond an id were decided.';
