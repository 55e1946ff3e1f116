-- The dead letters of an event.
--
-- They are found by their keys, because there is no index on event_ref: by every route that exists, or that a
-- completeness check has met. "any (array (...))" keeps the planner from reading all dead letters into a hash.
--
-- $1 uuid  event

select t.*
  from public.v_iu_trace_dead_letter t
 where t.idempotency_key = any (array(
           select public.fn_iu_idempotency_key(c.route_code, $1::uuid)
             from (select r.route_code from public.iu_outbound_route r
                   union
                   select unnest(u.codes) from public.iu_completeness_pass u
                   union
                   select '(none)') c))
 order by t.created_at, t.id
