-- What-if analysis of a route for the events of a period: the decision that the enabled route would make now, beside
-- the decision that was made.
--
-- Attempts are found by their keys; attempts on events that the route no longer selects are found by its code.
--
-- $1 text         route
-- $2 timestamptz  beginning of the period

with route as (
    select r.* from public.iu_outbound_route r where r.route_code = $1
), taken as (
    select o.id, o.created_at, coalesce(a.status, n.decision, 'not decided') as was
      from route r
      join public.event_outbox o
        on o.event_domain = r.event_domain and o.event_type = r.event_type and o.event_stream = r.event_stream
       and o.created_at >= $2
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
      join public.iu_route_attempt a on a.route_code = r.route_code and a.created_at >= $2
      join public.event_outbox o on o.id = a.event_ref
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
