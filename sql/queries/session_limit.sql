-- Sets a time limit for the later statements of this session.
--
-- $1 text  the setting: lock_timeout or statement_timeout
-- $2 text  the time with its unit, for example 500ms

select pg_catalog.set_config($1, $2, false)
