-- A page of attempts: those that are visible in the second snapshot and not in the first one.
--
-- $1 text     first snapshot
-- $2 text     second snapshot
-- $3 text     transaction of the last attempt of the previous page
-- $4 bigint   id of the last attempt of the previous page
-- $5 integer  maximum number

select * from public.fn_iu_trace_attempts($1::text::pg_snapshot, $2::text::pg_snapshot, $3::text::xid8, $4, $5)
