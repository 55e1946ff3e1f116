-- The routes that have open dead letters with a failure code.
--
-- The routes are found one after the other in iu_route_dead_letter_kind_idx, so the cost depends on the number of routes,
-- and not on the number of dead letters.
--
-- $1 text  failure code

with recursive route as (
    (select d.route_code
       from public.iu_route_dead_letter d
      where d.resolved_at is null
      order by d.route_code
      limit 1)
    union all
    select n.route_code
      from route r
     cross join lateral (
           select d.route_code
             from public.iu_route_dead_letter d
            where d.resolved_at is null and d.route_code > r.route_code
            order by d.route_code
            limit 1) n
)
select r.route_code
  from route r
 where exists (select from public.iu_route_dead_letter d
                where d.resolved_at is null and d.route_code = r.route_code and d.failure_code = $1)
