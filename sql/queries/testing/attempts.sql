-- The last attempt of each event and route, with the payload of the event and the reason of a failure, oldest first.
--
-- $1 text  route, or null for all

select distinct on (o.event_seq, a.route_code)
       o.id, o.event_type, o.event_subject_ref::text as subject, o.safe_payload::text as payload, a.route_code, a.status,
       a.decision, a.failure_code,
       case when a.status = 'failed' then coalesce(l.failure_detail, d.failure_detail) end as failure_detail
  from public.iu_route_attempt a
  join public.event_outbox o on o.id = a.event_ref
  left join public.iu_route_dead_letter l on l.idempotency_key = a.idempotency_key
  left join public.iu_route_delivery d on d.route_code = a.route_code and d.event_ref = a.event_ref
 where $1::text is null or a.route_code = $1
 order by o.event_seq, a.route_code, a.attempt_no desc, a.id desc
