-- Subjects with deliveries that wait for an earlier one, oldest first, among the oldest deliveries of each route: the
-- number of these deliveries (depth), the event they wait for, and the time at which its delivery was queued.
--
-- As many deliveries of a route are read as "delivery/routes" counts; if there are more, its "more" is true.
--
-- $1 integer  maximum number     $2 bigint  bound for one route; null: all are read

with route as materialized (
    select v.route_code from public.v_iu_delivery v
), bound as materialized (
    select least($2::bigint, greatest($2::bigint / 10, 10 * $2::bigint / nullif(count(*), 0))) as most from route
), parked as (
    select r.route_code, d.subject_key, min(d.id) as id, count(*) - 1 as depth
      from route r
     cross join bound b
     cross join lateral (
           select x.id, x.subject_key
             from public.iu_route_delivery x
            where x.route_code = r.route_code
            order by x.id
            limit b.most) d
     where d.subject_key is not null
     group by r.route_code, d.subject_key
    having count(*) > 1
)
select h.route_code, coalesce(o.event_subject_ref::text, o.canonical_address) as subject, h.depth, h.event_ref as waits_for,
       h.created_at as since, h.tries, nullif(h.due_at, 'infinity') as due_at, h.failure_code
  from (select d.*, p.depth
          from parked p
         cross join lateral (
               select x.route_code, x.event_ref, x.created_at, x.tries, x.due_at, x.failure_code
                 from public.iu_route_delivery x
                where x.route_code = p.route_code and x.id = p.id) d
         order by d.created_at
         limit $1) h
  left join lateral (select e.event_subject_ref, e.canonical_address from public.event_outbox e where e.id = h.event_ref limit 1) o
    on true
 order by h.created_at
