-- Settings of a session that no other client shares. Names in this statement are qualified, because the role's own
-- search_path is in force until it has run, and that may contain a schema to which other roles may write. Afterwards
-- the search_path is pg_catalog, with pg_temp last: an empty path would search temporary tables and types before
-- pg_catalog. Rows that a policy hides are an error (42501), so that they are not missed silently. A statement ends
-- before its client gives it up, and soon after its client has gone, if the platform of the server can detect that.
-- Plans are not compiled (jit): a statement with a bound costs less than it is estimated to cost. The other settings
-- limit how long a dead host, or a frozen one, can hold locks.
--
-- $1 text     idle_session_timeout, e.g. 15000ms; 0 means never
-- $2 boolean  true: the session only reads, listens and holds advisory locks
-- $3 text     statement_timeout, e.g. 15000ms; null leaves it unchanged
-- $4 text     transaction_timeout, if the server has it (17 and newer), e.g. 15000ms; null leaves it unchanged

select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false),
       pg_catalog.set_config('row_security', 'off', false),
       pg_catalog.set_config('jit', 'off', false),
       pg_catalog.set_config('client_min_messages', 'warning', false),
       -- Fixed text forms of times, intervals and numbers, independent of the role and the database.
       pg_catalog.set_config('TimeZone', 'UTC', false),
       pg_catalog.set_config('DateStyle', 'ISO, MDY', false),
       pg_catalog.set_config('IntervalStyle', 'postgres', false),
       pg_catalog.set_config('bytea_output', 'hex', false),
       pg_catalog.set_config('extra_float_digits', '1', false),
       -- Fixed rules for quoting names and literals.
       pg_catalog.set_config('quote_all_identifiers', 'off', false),
       pg_catalog.set_config('standard_conforming_strings', 'on', false),
       pg_catalog.set_config('transform_null_equals', 'off', false),
       pg_catalog.set_config('array_nulls', 'on', false),
       pg_catalog.set_config('tcp_keepalives_idle', '5', false),
       pg_catalog.set_config('tcp_keepalives_interval', '3', false),
       pg_catalog.set_config('tcp_keepalives_count', '3', false),
       pg_catalog.set_config('tcp_user_timeout', '10000', false),
       case when pg_catalog.version() operator(pg_catalog.!~*) 'windows|mingw|msvc|visual c'
            then pg_catalog.set_config('client_connection_check_interval', '2s', false) end,
       pg_catalog.set_config('idle_session_timeout', $1, false),
       case when $2 then pg_catalog.set_config('default_transaction_read_only', 'on', false) end,
       pg_catalog.set_config('statement_timeout',
                             coalesce($3, pg_catalog.current_setting('statement_timeout')), false),
       case when pg_catalog.current_setting('transaction_timeout', true) is not null and $4::pg_catalog.text is not null
            then pg_catalog.set_config('transaction_timeout', $4, false) end
