-- Become the one active consumer of a worker, for the life of this session.
--
-- $1 int   first key of the lease
-- $2 text  worker
--
-- Only tried, never waited for: a statement that waits holds a snapshot, and vacuum behind it.

select pg_try_advisory_lock($1, hashtext($2))
