-- Whether a worker has nothing to do now: no event waits to be routed, and no delivery can begin. Deliveries that wait
-- for a retry, for an earlier delivery of their subject, or for a paused route can not. Health counts waiting events up to
-- a bound; v_iu_event_backlog would count all of them. The deliveries of a route are searched in their order, and only if
-- it is not paused, so the search ends at the first one that can begin.
--
-- $1 text  worker

select coalesce((public.fn_iu_route_worker_health($1) ->> 'backlog')::bigint, 0) = 0
   and not exists (
       select from public.v_iu_delivery r
        cross join lateral (
              select d.id
                from public.iu_route_delivery d
               where r.paused_by is null and d.route_code = r.route_code and d.worker_name = $1
                 and (d.due_at is null or d.due_at <= clock_timestamp())
                 and (d.subject_key is null
                      or d.id = (select h.id from public.fn_iu_delivery_first(d.route_code, d.subject_key) h))
               order by d.id
               limit 1) x)
