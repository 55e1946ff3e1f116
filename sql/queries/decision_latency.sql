-- The latencies of the youngest decisions after a given attempt, in seconds.
--
-- $1 text     worker
-- $2 bigint   last attempt at the previous call; null: this is the first call
-- $3 integer  maximum number

select l.last_id, l.seconds, l.since_commit from public.fn_iu_decision_latency($1, $2, $3) l
