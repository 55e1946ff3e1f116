-- The last attempt of each event and route, with the payload of the event, oldest first.
--
-- $1 text  route, or null for all

select distinct on (o.event_seq, a.route_code)
       o.event_type, o.event_subject_ref::text as subject, o.safe_payload::text as payload, a.route_code, a.status,
       a.decision, a.failure_code
  from public.iu_route_attempt a
  join public.event_outbox o on o.id = a.event_ref
 where $1::text is null or a.route_code = $1
 order by o.event_seq, a.route_code, a.attempt_no desc, a.id desc
