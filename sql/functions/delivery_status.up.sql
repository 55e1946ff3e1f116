-- The state of deliveries for operators and health checks: paused routes, parked deliveries, and missing progress.
--
-- kind: repeatable
-- needs: 008, 012, functions/delivery_policy, functions/delivery_switches, functions/delivery_take
-- locks: nothing that other sessions use

-- The deliveries are counted in a left join of its own, which the planner leaves out for a query that does not use the
-- counts. Whether there is one at all is a search with an order, so that it uses the index whatever the statistics say.
create or replace view public.v_iu_delivery as
select r.route_code, r.target_kind, r.target_ref, coalesce(d.pending, 0) as pending, coalesce(d.retrying, 0) as retrying,
       d.since, coalesce(h.paused_by, case when u.why is not null then 'no_target' end) as paused_by,
       case when h.paused_by is null then u.why else b.why end as why, b.opened_at, b.stopped_at,
       case when h.paused_by is null then u.hint
            when h.paused_by = 'breaker_open' and b.why = 'address_refused'
                then 'Its host has an address that is not public. To allow it, start the consumer with '
                     'IU_LISTEN_ALLOW_PRIVATE=HOST'
            when h.paused_by = 'dead_letter_budget'
                then 'No delivery arrived between these dead letters. One delivery at a time is attempted, and the first '
                     'one that arrives resumes the route. The failures: iu-listen dead-letter list --route '
                     || r.route_code || '. To resume the route now: iu-listen route resume ' || r.route_code end as hint
  from public.iu_outbound_route r
  left join public.iu_delivery_breaker b on b.route_code = r.route_code
 cross join lateral (
       select public.fn_iu_delivery_paused_by(r.route_code, r.enabled, r.dry_run, b.stopped_at, b.opened_at) as paused_by
       offset 0) h
  left join lateral (
       select x.why, x.hint
         from public.iu_delivery_unusable x
        where x.route_code = r.route_code
        order by x.since
        limit 1) u on true
  left join lateral (
       select count(*) as pending, count(*) filter (where x.tries > 0) as retrying, min(x.created_at) as since
         from public.iu_route_delivery x
        where x.route_code = r.route_code) d on true
 where r.target_kind in ('workflow', 'external_endpoint')
   and (r.enabled and not r.dry_run
        or (select x.id from public.iu_route_delivery x where x.route_code = r.route_code order by x.id limit 1) is not null);
comment on view public.v_iu_delivery is
    'Each live route with a target that the consumer calls, and each such route with pending deliveries: their number, '
    'since when the oldest waits, and why the route is paused.';

create or replace view public.v_iu_delivery_parked as
select h.route_code, h.subject_key, q.depth - 1 as depth, h.event_ref as waits_for, h.created_at as since, h.tries,
       nullif(h.due_at, 'infinity') as due_at, h.failure_code
  from (select d.route_code, d.subject_key, min(d.id) as id, count(*) as depth
          from public.iu_route_delivery d
         where d.subject_key is not null
         group by d.route_code, d.subject_key
        having count(*) > 1) q
  join public.iu_route_delivery h on h.route_code = q.route_code and h.id = q.id;
comment on view public.v_iu_delivery_parked is
    'Subjects with deliveries that wait for an earlier one: their number (depth), the event they wait for, and the '
    'time at which its delivery was queued.';

-- Detects waiting deliveries while none is settled and no reason is known: no closed switch, no open circuit breaker,
-- no missing target. The limit is the deadline of the route plus one minute, because a single attempt may take as long
-- as the deadline. A delivery behind an earlier one of its subject waits for that one. Of the first hundred deliveries,
-- the oldest one that does not wait in this way is judged, so a subject with a long queue costs a bounded number of
-- rows. The hundred are searched among the oldest 10 000 of the route, of which replays and deliveries of another worker
-- may be many.
create or replace function public.fn_iu_delivery_progress_missing(p_worker_name text)
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
-- As in health: a plan that was made while there were no deliveries would sort all of them.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
    select coalesce(array_agg(format('deliveries of route %s wait, the oldest for %s s, and none was settled', w.route_code,
                                     round(extract(epoch from clock_timestamp() - w.since))) order by w.route_code), '{}')
      from (select r.route_code,
                   (public.fn_iu_delivery_policy(r.delivery_policy) ->> 'deadline')::double precision + 60 as seconds,
                   (select n.created_at
                      from (select d.id, d.subject_key, d.created_at
                              from (select x.id, x.subject_key, x.created_at, x.due_at, x.worker_name
                                      from public.iu_route_delivery x
                                     where x.route_code = r.route_code
                                     order by x.id
                                     limit 10000) d
                             where d.due_at is null and d.worker_name = p_worker_name
                             order by d.id
                             limit 100) n
                     where n.subject_key is null
                        or n.id = (select h.id from public.fn_iu_delivery_first(r.route_code, n.subject_key) h)
                     order by n.id
                     limit 1) as new_since,
                   (select d.due_at
                      from (select x.due_at, x.worker_name
                              from public.iu_route_delivery x
                             where x.route_code = r.route_code and x.due_at is not null
                             order by x.due_at
                             limit 10000) d
                     where d.worker_name = p_worker_name
                     order by d.due_at
                     limit 1) as due_since
              from public.iu_outbound_route r
              left join public.iu_delivery_breaker b on b.route_code = r.route_code
             where r.event_domain = (select c.event_domain from public.iu_route_worker_cursor c
                                      where c.worker_name = p_worker_name)
               and r.target_kind in ('workflow', 'external_endpoint') and r.enabled and not r.dry_run
               and public.fn_iu_delivery_paused_by(r.route_code, r.enabled, r.dry_run, b.stopped_at, b.opened_at) is null
               and not exists (select from public.iu_delivery_unusable u
                                where u.route_code = r.route_code and u.worker_name = p_worker_name)) q
     cross join lateral (select q.route_code, least(q.new_since, q.due_since) as since, q.seconds) w
     where w.since < clock_timestamp() - w.seconds * interval '1 second'
       and not exists (select from public.iu_delivery_lease l
                        where l.worker_name = p_worker_name
                          and l.settled_at > clock_timestamp() - w.seconds * interval '1 second')
$$;
comment on function public.fn_iu_delivery_progress_missing(text) is
    'One sentence for each route with deliveries that wait while none is settled and no reason is known.';
