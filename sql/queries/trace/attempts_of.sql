-- The attempts of an event.
--
-- They are found by their keys, because there is no index on event_ref: by every route that exists, or that a
-- completeness check has met.
--
-- $1 uuid  event

with code as (
    select r.route_code from public.iu_outbound_route r
    union
    select unnest(u.codes) from public.iu_completeness_pass u
    union
    select '(none)'
)
select t.*
  from code c
  join public.v_iu_trace_attempt t on t.idempotency_key = public.fn_iu_idempotency_key(c.route_code, $1::uuid)
 order by t.created_at, t.id
