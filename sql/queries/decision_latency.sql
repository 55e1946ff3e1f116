-- How late the youngest decisions were, in seconds; of those beyond an attempt, and no more than so many.
--
-- $1 text     worker
-- $2 bigint   the attempt that was the last one when this was asked before; null: it was not
-- $3 integer  how many at most

select l.last_id, l.seconds, l.since_commit from public.fn_iu_decision_latency($1, $2, $3) l
