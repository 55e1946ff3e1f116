-- The deliveries that a cancel would end, and why the route is paused; null: it delivers, or there is no such route.
--
-- $1 text  route      $2 uuid  event, or null for all

select count(d.id) as count, max(d.id) as last_id, min(d.created_at) as oldest_at, max(d.created_at) as newest_at,
       (select coalesce(public.fn_iu_delivery_paused_by(r.route_code, r.enabled, r.dry_run, b.stopped_at, b.opened_at),
                        (select 'no_target' from public.iu_delivery_unusable u where u.route_code = r.route_code limit 1))
          from public.iu_outbound_route r
          left join public.iu_delivery_breaker b on b.route_code = r.route_code
         where r.route_code = $1) as paused_by,
       exists (select from public.iu_outbound_route r where r.route_code = $1) as known
  from public.iu_route_delivery d
 where d.route_code = $1 and ($2::uuid is null or d.event_ref = $2)
