-- Limits how long the probe may wait, and how long it may block other sessions, even if its process is frozen.
--
-- $1 text  lock_timeout, e.g. 2000ms

select set_config('lock_timeout', $1, true), set_config('statement_timeout', '60s', true),
       set_config('idle_in_transaction_session_timeout', '10s', true)
