-- Whether a server process of the same role is executing a statement. False if it has ended.
--
-- $1 int  pid

select coalesce((select a.state = 'active' from pg_stat_activity a where a.pid = $1), false)
