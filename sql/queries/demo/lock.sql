-- Ensures that only one demo runs on this server, for the length of a session; false: another one is running.

select pg_catalog.pg_try_advisory_lock(726004, 2)
