-- A page of attempts: those that are visible in one snapshot and not in another.
--
-- $1 text     the snapshot before
-- $2 text     the snapshot
-- $3 text     transaction of the last one of the page before
-- $4 bigint   id of that one
-- $5 integer  how many at most

select * from public.fn_iu_trace_attempts($1::text::pg_snapshot, $2::text::pg_snapshot, $3::text::xid8, $4, $5)
