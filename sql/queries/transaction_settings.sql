-- Settings of a transaction in a session that a pooler shares: those of session_settings.sql that concern a statement.
-- They end with the transaction, so the next client of the session is not affected.
--
-- $1 text  statement_timeout, e.g. 15000ms; null leaves it unchanged
-- $2 text  lock_timeout, e.g. 2000ms; null leaves it unchanged

select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
       pg_catalog.set_config('row_security', 'off', true),
       pg_catalog.set_config('jit', 'off', true),
       pg_catalog.set_config('TimeZone', 'UTC', true),
       pg_catalog.set_config('DateStyle', 'ISO, MDY', true),
       pg_catalog.set_config('IntervalStyle', 'postgres', true),
       pg_catalog.set_config('bytea_output', 'hex', true),
       pg_catalog.set_config('extra_float_digits', '1', true),
       pg_catalog.set_config('quote_all_identifiers', 'off', true),
       pg_catalog.set_config('standard_conforming_strings', 'on', true),
       pg_catalog.set_config('transform_null_equals', 'off', true),
       pg_catalog.set_config('array_nulls', 'on', true),
       case when $1::pg_catalog.text is not null then pg_catalog.set_config('statement_timeout', $1, true) end,
       case when $2::pg_catalog.text is not null then pg_catalog.set_config('lock_timeout', $2, true) end
