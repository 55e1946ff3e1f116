-- Attempts, newest first. They are read in the order of the primary key, so only the newest are read; failed ones in the
-- order of iu_route_attempt_failed_idx.
--
-- $1 text  route, or null      $2 text    status, or null
-- $3 int   maximum number      $4 bigint  lowest id that is read, or null

select a.event_ref, a.route_kind, a.route_code, a.status, a.decision, a.delivered, a.failure_code,
       a.attempt_no, a.idempotency_key, a.created_at
  from public.iu_route_attempt a
 where ($1::text is null or a.route_code = $1)
   and ($2::text is null or a.status = $2)
   and ($4::bigint is null or a.id >= $4)
 order by a.id desc
 limit $3
