-- What-if analysis of a route for the events of a period: the decision that the enabled route would make now, beside
-- the decision that was made.
--
-- Of the newest events those that the route selects are judged; their attempts are found by keys. Of the newest attempts
-- those of the route show the events that it no longer selects. Each row is looked up by its key (lateral, limit 1): a
-- hash of the whole table would be built for a few thousand events.
--
-- $1 text         route
-- $2 timestamptz  beginning of the period
-- $3 bigint       number of the newest events of the domain, and of the newest attempts, that are read; null: all
-- $4 bigint       number of events that are judged, of either kind; null: all

with route as (
    select r.* from public.iu_outbound_route r where r.route_code = $1
), taken as (
    select o.id, o.created_at, coalesce(a.status, n.decision, 'not decided') as was
      from route r
     cross join lateral (
           select e.id, e.created_at
             from (select x.id, x.created_at, x.event_type, x.event_stream
                     from public.event_outbox x
                    where x.event_domain = r.event_domain
                    order by x.event_seq desc, x.id desc
                    limit $3::bigint) e
            where e.event_type = r.event_type and e.event_stream = r.event_stream and e.created_at >= $2
            limit $4::bigint) o
      left join lateral (
           select x.status from public.iu_route_attempt x
            where x.idempotency_key = public.fn_iu_idempotency_key(r.route_code, o.id)
            order by x.attempt_no desc limit 1) a on true
      left join lateral (
           select x.decision from public.iu_route_attempt x
            where x.idempotency_key = 'outbound:(none):' || o.id
            order by x.attempt_no desc limit 1) n on a.status is null
), left_alone as (
    select distinct on (a.event_ref) a.event_ref as id, a.created_at, a.status
      from route r
     cross join lateral (
           select x.event_ref, x.created_at, x.status, x.attempt_no
             from (select t.event_ref, t.route_code, t.created_at, t.status, t.attempt_no
                     from public.iu_route_attempt t
                    order by t.id desc
                    limit $3::bigint) x
            where x.route_code = r.route_code and x.created_at >= $2
            limit $4::bigint) a
     cross join lateral (
           select x.event_domain, x.event_type, x.event_stream from public.event_outbox x where x.id = a.event_ref limit 1) o
     where (o.event_domain, o.event_type, o.event_stream) is distinct from (r.event_domain, r.event_type, r.event_stream)
     order by a.event_ref, a.attempt_no desc
)
-- Python's datetime ends with the year 9999; times that producers set may lie beyond.
select c.would, c.was, count(*) as events, least(min(c.created_at), '9999-12-30') as oldest,
       least(max(c.created_at), '9999-12-30') as youngest,
       (array_agg(c.id order by c.created_at desc))[1:3] as examples
  from (select 'take' as would, t.was, t.id, t.created_at from taken t
        union all
        select 'leave', l.status, l.id, l.created_at from left_alone l) c
 group by c.would, c.was
 order by c.would desc, c.was
