-- How long a dead host can hold anything, and how long a frozen one: for a session that is ours alone.
--
-- $1 text     idle_session_timeout, e.g. 15000ms; 0 means never
-- $2 boolean  true: it may only look, listen and hold advisory locks
-- $3 text     statement_timeout, e.g. 15000ms; null leaves it as it is
-- $4 text     transaction_timeout, where there is one (17 and newer), e.g. 15000ms; null leaves it as it is

select set_config('client_min_messages', 'warning', false),
       -- Times, intervals and numbers as text, whatever the role or the database prefers.
       set_config('TimeZone', 'UTC', false),
       set_config('DateStyle', 'ISO, MDY', false),
       set_config('IntervalStyle', 'postgres', false),
       set_config('bytea_output', 'hex', false),
       set_config('extra_float_digits', '1', false),
       set_config('tcp_keepalives_idle', '5', false),
       set_config('tcp_keepalives_interval', '3', false),
       set_config('tcp_keepalives_count', '3', false),
       set_config('tcp_user_timeout', '10000', false),
       set_config('idle_session_timeout', $1, false),
       set_config('default_transaction_read_only',
                  case when $2 then 'on' else current_setting('default_transaction_read_only') end, false),
       set_config('statement_timeout', coalesce($3, current_setting('statement_timeout')), false),
       case when current_setting('transaction_timeout', true) is not null and $4::text is not null
            then set_config('transaction_timeout', $4, false) end
