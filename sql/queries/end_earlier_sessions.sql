-- Finds this session, and the former sessions of this consumer that still exist, and ends the latter. A pid and a start
-- time together identify a session. If a network path failed silently, the server does not know it: it would keep a
-- lock or a lease for the lost client, and a statement that waits for a lock does not notice that its client is gone.
--
-- pg_stat_get_activity is the function below the view pg_stat_activity. In a new session, planning the joins of the view
-- takes longer than the query.
--
-- $1 int[]          pids of former sessions
-- $2 timestamptz[]  their start times

select a.pid, a.backend_start, a.pid = pg_catalog.pg_backend_pid() as mine,
       case when a.pid <> pg_catalog.pg_backend_pid() then pg_catalog.pg_terminate_backend(a.pid) end as ended
  from pg_catalog.pg_stat_get_activity(case when $1::int[] = '{}' then pg_catalog.pg_backend_pid() end) a
 where a.pid = pg_catalog.pg_backend_pid()
    or a.usesysid = (select r.oid from pg_catalog.pg_roles r where r.rolname = session_user)
       and (a.pid, a.backend_start) in (select f.pid, f.began from unnest($1::int[], $2::timestamptz[]) f(pid, began))
