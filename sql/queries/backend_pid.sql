-- The server process that answers: another one than the connection was told means that a pooler is in between.

select pg_catalog.pg_backend_pid()
