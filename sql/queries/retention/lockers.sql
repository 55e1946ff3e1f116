-- Who holds locks on a partition or on the log, the oldest transaction first.
--
-- $1 oid  partition

select format('pid %s, %s, %s for %s s', a.pid, coalesce(nullif(a.application_name, ''), a.usename, 'unnamed'), a.state,
              round(extract(epoch from clock_timestamp() - coalesce(a.xact_start, a.backend_start)))) as who
  from pg_stat_activity a
 where a.pid <> pg_backend_pid()
   and exists (select from pg_locks l where l.pid = a.pid and l.relation in ($1::oid, 'public.event_outbox'::regclass) and l.granted)
 order by a.xact_start nulls last
 limit 3
