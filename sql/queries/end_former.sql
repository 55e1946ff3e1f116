-- This session, and what is left of former ones of ours: pid and beginning together are never another one's. What is left
-- is ended. A path that went silent never told the server, which would keep a lock or a lease for it, and a statement
-- that waits for a lock does not notice that nobody waits for it.
--
-- $1 int[]          pids of former sessions
-- $2 timestamptz[]  when they began

select a.pid, a.backend_start, a.pid = pg_catalog.pg_backend_pid() as mine,
       case when a.pid <> pg_catalog.pg_backend_pid() then pg_catalog.pg_terminate_backend(a.pid) end as ended
  from pg_catalog.pg_stat_activity a
 where a.pid = pg_catalog.pg_backend_pid()
    or a.usename = session_user
       and (a.pid, a.backend_start) in (select f.pid, f.began from unnest($1::int[], $2::timestamptz[]) f(pid, began))
