-- The attempts of the live route for the events of some units, in order.
--
-- $1 uuid[]  units

select o.canonical_address, a.attempt_no, a.status, a.failure_code
  from public.iu_route_attempt a
  join public.event_outbox o on o.id = a.event_ref
 where a.route_code = 'demo.crm' and o.event_domain = 'iu' and o.event_subject_ref = any ($1::uuid[])
 order by o.canonical_address, a.attempt_no
