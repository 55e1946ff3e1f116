-- This session: pid and beginning together are never another one's.

select a.pid, a.backend_start from pg_stat_activity a where a.pid = pg_backend_pid()
