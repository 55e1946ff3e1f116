-- The event of a version, and the result of its attempts.
--
-- $1 uuid  version

select o.id, o.canonical_address, a.status, extract(epoch from a.finished_at)::float8 as decided_at
  from public.event_outbox o
  join public.iu_route_attempt a on a.event_ref = o.id
 where o.event_domain = 'iu' and o.safe_payload ->> 'unit_version_id' = $1::uuid::text
   and o.event_seq > (select last_value from public.event_outbox_event_seq) - 1000
