-- How long a dead host can hold anything, and how long a frozen one: for a session that is ours alone.
--
-- $1 text  idle_session_timeout, e.g. 15000ms; 0 means never

select set_config('client_min_messages', 'warning', false),
       set_config('tcp_keepalives_idle', '5', false),
       set_config('tcp_keepalives_interval', '3', false),
       set_config('tcp_keepalives_count', '3', false),
       set_config('tcp_user_timeout', '10000', false),
       set_config('idle_session_timeout', $1, false)
