-- The dead letters that a batch has made, by route and failure code, the most frequent first, each with one event.
--
-- $1 text  transaction of the batch     $2 int  maximum number of rows

select l.route_code as route, l.failure_code as code, count(*) as count,
       (array_agg(l.event_ref::text order by a.id))[1] as event,
       (array_agg(coalesce(l.failure_detail, '') order by a.id))[1] as why
  from public.iu_route_attempt a
  join public.iu_route_dead_letter l on l.idempotency_key = a.idempotency_key
 where a.xact_id = $1::text::xid8 and a.status = 'failed' and l.resolved_at is null
 group by l.route_code, l.failure_code
 order by count(*) desc, l.route_code, l.failure_code
 limit $2
