-- The process id of the server process. If it differs from the one that the connection was told, there is a pooler in
-- between.

select pg_catalog.pg_backend_pid()
