-- One dead letter with all columns; and the number of later events of its domain about the same subject.
--
-- There is no index by subject, because every producer would have to maintain it. So the next events are searched through
-- event_outbox_order_idx, up to a bound; newer_looked_at is the number of events that were searched.
--
-- $1 uuid  dead letter

select d.id, d.worker_name, d.event_ref, d.route_kind, d.route_code, d.idempotency_key, d.attempt_no,
       d.event_snapshot::text as event_snapshot, d.failure_code, d.failure_detail, d.created_at, d.replay_count,
       d.last_replay_at, d.resolved_at, d.resolution,
       r.enabled as route_enabled, r.dry_run as route_dry_run, n.newer_of_subject, n.newer_looked_at
  from public.iu_route_dead_letter d
  left join public.iu_outbound_route r on r.route_code = d.route_code
 cross join lateral (
       select count(*) filter (where e.event_subject_ref::text = d.event_snapshot ->> 'event_subject_ref')
                  as newer_of_subject,
              count(*) as newer_looked_at
         from (select o.event_subject_ref
                 from public.event_outbox o
                where o.event_domain = d.event_snapshot ->> 'event_domain'
                  and o.event_seq > (d.event_snapshot ->> 'event_seq')::bigint
                order by o.event_domain, o.event_seq
                limit 10000) e) n
 where d.id = $1
