-- A page of dead letters: those that are visible in the second snapshot and not in the first one.
--
-- $1 text     first snapshot
-- $2 text     second snapshot
-- $3 text     transaction of the last dead letter of the previous page
-- $4 uuid     id of the last dead letter of the previous page
-- $5 integer  maximum number

select * from public.fn_iu_trace_dead_letters($1::text::pg_snapshot, $2::text::pg_snapshot, $3::text::xid8, $4, $5)
