-- The attempts of an event, newest first.
--
-- They are found by their keys, because there is no index on event_ref: by every route that exists, or that a
-- completeness check has met. "any (array (...))" keeps the planner from reading all attempts into a hash.
--
-- $1 uuid  event               $2 text  route, or null
-- $3 text  status, or null     $4 int   maximum number

select a.event_ref, a.route_kind, a.route_code, a.status, a.decision, a.delivered, a.failure_code,
       a.attempt_no, a.idempotency_key, a.created_at
  from public.iu_route_attempt a
 where a.idempotency_key = any (array(
           select public.fn_iu_idempotency_key(c.route_code, $1::uuid)
             from (select r.route_code from public.iu_outbound_route r
                   union
                   select unnest(u.codes) from public.iu_completeness_pass u
                   union
                   select '(none)') c))
   and ($2::text is null or a.route_code = $2)
   and ($3::text is null or a.status = $3)
 order by a.id desc
 limit $4
