-- Move an export after a page was accepted. True: routing is behind, and an export gives way.
--
-- $1 text     name of the export
-- $2 text     the tick
-- $3 text     transaction of the last attempt that was accepted
-- $4 bigint   id of that attempt
-- $5 text     transaction of the last dead letter that was accepted
-- $6 uuid     id of that dead letter
-- $7 boolean  the tick is done
-- $8 bigint   spans that were accepted
-- $9 bigint   spans that were refused for good
-- $10 bigint  events whose trace context was ignored

select public.fn_iu_trace_accepted($1, $2::text::pg_snapshot, $3::text::xid8, $4, $5::text::xid8, $6, $7, $8, $9, $10)
