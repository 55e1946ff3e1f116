-- Finds this session, and the former sessions of this consumer that still exist, and ends the latter. A pid and a start
-- time together identify a session. If a network path failed silently, the server does not know it: it would keep a
-- lock or a lease for the lost client, and a statement that waits for a lock does not notice that its client is gone.
--
-- $1 int[]          pids of former sessions
-- $2 timestamptz[]  their start times

select a.pid, a.backend_start, a.pid = pg_catalog.pg_backend_pid() as mine,
       case when a.pid <> pg_catalog.pg_backend_pid() then pg_catalog.pg_terminate_backend(a.pid) end as ended
  from pg_catalog.pg_stat_activity a
 where a.pid = pg_catalog.pg_backend_pid()
    or a.usename = session_user
       and (a.pid, a.backend_start) in (select f.pid, f.began from unnest($1::int[], $2::timestamptz[]) f(pid, began))
