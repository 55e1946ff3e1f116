-- Sets the time after which the server cancels a statement of this session.
--
-- $1 text  the time with its unit, for example 500ms

select set_config('statement_timeout', $1, false)
