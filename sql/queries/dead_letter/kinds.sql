-- Open dead letters by route and failure code: their number (counted up to a bound), the oldest and the newest. If there
-- are more than the bound, "open" is one more than it, and "more" is true.
--
-- The kinds are found one after the other in iu_route_dead_letter_kind_idx, so the cost depends on the number of kinds
-- and on the bound, and not on the number of dead letters. More than ten kinds share ten times the bound, as long as each
-- is counted up to a tenth of it.
--
-- $1 bigint  bound for one kind; null: all are counted

with recursive kind as (
    (select d.route_code, d.failure_code
       from public.iu_route_dead_letter d
      where d.resolved_at is null
      order by d.route_code, d.failure_code
      limit 1)
    union all
    select n.route_code, n.failure_code
      from kind k
     cross join lateral (
           select d.route_code, d.failure_code
             from public.iu_route_dead_letter d
            where d.resolved_at is null and (d.route_code, d.failure_code) > (k.route_code, k.failure_code)
            order by d.route_code, d.failure_code
            limit 1) n
), bound as materialized (
    select least($1::bigint, greatest($1::bigint / 10, 10 * $1::bigint / nullif(count(*), 0))) as most from kind
)
select k.route_code, k.failure_code, c.open, coalesce(c.open > b.most, false) as more, o.created_at as oldest_at,
       n.created_at as newest_at
  from kind k
 cross join bound b
 cross join lateral (
       select count(*) as open
         from (select from public.iu_route_dead_letter d
                where d.resolved_at is null and d.route_code = k.route_code and d.failure_code = k.failure_code
                limit b.most + 1) x) c
 cross join lateral (
       select d.created_at from public.iu_route_dead_letter d
        where d.resolved_at is null and d.route_code = k.route_code and d.failure_code = k.failure_code
        order by d.created_at, d.id
        limit 1) o
 cross join lateral (
       select d.created_at from public.iu_route_dead_letter d
        where d.resolved_at is null and d.route_code = k.route_code and d.failure_code = k.failure_code
        order by d.created_at desc, d.id desc
        limit 1) n
 order by c.open desc, k.route_code, k.failure_code
