-- End a former session of our own, if it is still there: a path that went silent never told the server, which would
-- keep the lease for it until idle_session_timeout.
--
-- $1 int  its pid      $2 timestamptz  when it began

select pg_terminate_backend(a.pid)
  from pg_stat_activity a
 where a.pid = $1 and a.backend_start = $2 and a.usename = session_user
