-- The dead letters that a replay or a resolve would affect: open ones by route and failure code, with the present state
-- of their routes.
--
-- $1 text         route, or null
-- $2 text         failure code, or null
-- $3 timestamptz  created since then, or null
-- $4 uuid         event, or null
-- $5 uuid[]       ids: only these, or null
-- $6 timestamptz  created until then

select d.route_code, d.failure_code, d.count, d.oldest_at, d.newest_at, d.example,
       r.enabled as route_enabled, r.dry_run as route_dry_run
  from (select d.route_code, d.failure_code, count(*) as count, min(d.created_at) as oldest_at,
               max(d.created_at) as newest_at, min(d.id::text) as example
          from public.iu_route_dead_letter d
         where d.resolved_at is null
           and ($1::text is null or d.route_code = $1)
           and ($2::text is null or d.failure_code = $2)
           and ($3::timestamptz is null or d.created_at >= $3)
           and ($4::uuid is null or d.event_ref = $4)
           and ($5::uuid[] is null or d.id = any ($5))
           and d.created_at <= $6
         group by d.route_code, d.failure_code) d
  left join public.iu_outbound_route r on r.route_code = d.route_code
 order by d.route_code, d.failure_code
