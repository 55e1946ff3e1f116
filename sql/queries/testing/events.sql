-- The events of the outbox, in the order in which they were written.
--
-- $1 text  event type, or null for all

select o.id, o.event_type, o.event_subject_ref::text as subject, o.safe_payload::text as payload
  from public.event_outbox o
 where $1::text is null or o.event_type = $1
 order by o.event_seq
