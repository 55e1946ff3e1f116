-- Whether a server process of our own role is executing something. Gone is no.
--
-- $1 int  pid

select coalesce((select a.state = 'active' from pg_stat_activity a where a.pid = $1), false)
