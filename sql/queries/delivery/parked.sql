-- Subjects with deliveries that wait for an earlier one, oldest first.
--
-- $1 integer  maximum number

select p.route_code, coalesce(o.event_subject_ref::text, o.canonical_address) as subject, p.depth, p.waits_for, p.since,
       p.tries, p.due_at, p.failure_code
  from public.v_iu_delivery_parked p
  left join public.event_outbox o on o.id = p.waits_for
 order by p.since
 limit $1
