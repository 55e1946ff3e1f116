-- Routes that deliver or have pending deliveries, and why each is paused. The deliveries of a route are counted up to a
-- bound, the oldest first: if there are more, "pending" is one more than it, "more" is true, and "retrying" is the number
-- among those that were counted. More than ten routes share ten times the bound, as long as each is counted up to a tenth
-- of it.
--
-- $1 bigint  bound for one route; null: all are counted

with route as materialized (
    select v.route_code, v.target_kind, v.target_ref, v.paused_by, v.why, v.hint, v.opened_at, v.stopped_at
      from public.v_iu_delivery v
), bound as materialized (
    select least($1::bigint, greatest($1::bigint / 10, 10 * $1::bigint / nullif(count(*), 0))) as most from route
)
select r.route_code, r.target_kind, r.target_ref, c.pending, coalesce(c.pending > b.most, false) as more, c.retrying,
       c.since, r.paused_by, r.why, r.hint, r.opened_at, r.stopped_at
  from route r
 cross join bound b
 cross join lateral (
       select count(*) as pending, count(*) filter (where x.tries > 0) as retrying, min(x.created_at) as since
         from (select d.tries, d.created_at
                 from public.iu_route_delivery d
                where d.route_code = r.route_code
                order by d.id
                limit b.most + 1) x) c
 order by r.route_code
