-- Be the only demo of this server, for the length of a session; false: another one is at it.

select pg_catalog.pg_try_advisory_lock(726004, 2)
