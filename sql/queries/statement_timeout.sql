-- How long the statements of this transaction may take, in a session that is not ours alone.
--
-- $1 text  statement_timeout, e.g. 15000ms

select set_config('statement_timeout', $1, true)
