-- Sets the longest time for which statements of this session wait for a lock.
--
-- $1 text  lock_timeout, e.g. 2000ms

select pg_catalog.set_config('lock_timeout', $1, false)
