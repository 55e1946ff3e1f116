-- A probe may neither wait for nor hold up anybody for long, not even when it is frozen.
--
-- $1 text  lock_timeout, e.g. 2000ms

select set_config('lock_timeout', $1, true), set_config('statement_timeout', '60s', true),
       set_config('idle_in_transaction_session_timeout', '10s', true)
