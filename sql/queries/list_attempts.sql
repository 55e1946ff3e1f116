-- Attempts, newest first. They are read in the order of the primary key, so only the newest are read.
--
-- $1 uuid  event, or null      $2 text  route, or null      $3 text  status, or null      $4 int  maximum number

select a.event_ref, a.route_kind, a.route_code, a.status, a.decision, a.delivered, a.failure_code,
       a.attempt_no, a.idempotency_key, a.created_at
  from public.iu_route_attempt a
 where ($1::uuid is null or a.event_ref = $1)
   and ($2::text is null or a.route_code = $2)
   and ($3::text is null or a.status = $3)
 order by a.id desc
 limit $4
