-- Moves the position of an export after a page was accepted. True: a worker drains a backlog; the export should wait.
--
-- $1 text     name of the export
-- $2 text     tick
-- $3 text     transaction of the last accepted attempt
-- $4 bigint   id of the last accepted attempt
-- $5 text     transaction of the last accepted dead letter
-- $6 uuid     id of the last accepted dead letter
-- $7 boolean  true: the tick is complete
-- $8 bigint   number of accepted spans
-- $9 bigint   number of spans that were rejected for good
-- $10 bigint  number of events with an ignored trace context

select public.fn_iu_trace_accepted($1, $2::text::pg_snapshot, $3::text::xid8, $4, $5::text::xid8, $6, $7, $8, $9, $10)
