-- What is to be delivered next, and what it looks like from outside.
--
-- needs: 008, 009, 012, 019
-- locks: nothing that exists

-- Take ---------------------------------------------------------------------------------------------------
--
-- The caller says how many deliveries of each route it has room for, up to where it has taken it (p_after), and which of
-- those that were tried before it has (p_busy). What it has already, it passes over. It is answered one row for each
-- route, with what holds it, and one for each delivery. Nothing is written: what was taken is known to the holder of the
-- lease, and to nobody else.
--
-- A route that keeps order gives the first of a subject only. So the position passes those that are not, and they
-- are found by their subject when the one before them goes (p_freed). From time to time the caller begins at 0 again.
--
-- RETURN QUERY requires the exact types that are declared. event_outbox and iu_outbound_route belong to the application,
-- which may have given their columns another type (varchar(n), timestamp): every value of theirs is cast.
create function public.fn_iu_delivery_take(
    p_worker_name text, p_routes text[], p_rooms integer[], p_after bigint[], p_busy bigint[],
    p_freed_routes text[], p_freed_keys bigint[])
returns table (
    route jsonb, route_code text, delivery_id bigint, attempt_no integer, subject_key bigint,
    -- the attributes of an event, in the order in which the consumer has them (Event in model/delivery.py)
    event_ref uuid, event_domain text, event_type text, event_stream text, subject text, subject_table text, source_system text,
    actor_ref text, correlation_id text, occurred_at timestamptz, created_at timestamptz, traceparent text, payload text)
language plpgsql
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
-- What is due is read in its own order (009): sorted, it would be all that waits, in every turn.
set enable_sort = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_route   record;
    r         public.iu_outbound_route;
    b         public.iu_delivery_breaker;
    v_policy  jsonb;
    v_held    text;
    v_asked   integer;
    v_room    integer;
    v_most    integer;
    v_after   bigint;
    v_ordered boolean;
    v_looked  bigint;
    v_last    bigint;
    v_ids     bigint[];
    v_more    bigint[];
    v_due     timestamptz;
    v_now     timestamptz;
begin
    for v_route in
        select x as route, y as breaker
          from public.iu_outbound_route x
          left join public.iu_delivery_breaker y on y.route_code = x.route_code
         where x.event_domain = (select w.event_domain from public.iu_route_worker_cursor w
                                  where w.worker_name = p_worker_name)
           and x.target_kind in ('workflow', 'external_endpoint')
           and (x.enabled and not x.dry_run
                or exists (select from public.iu_route_delivery d where d.route_code = x.route_code))
    loop
        r := v_route.route;
        b := v_route.breaker;
        v_policy := public.fn_iu_delivery_policy(r.delivery_policy);
        v_now := clock_timestamp();
        v_held := public.fn_iu_delivery_held(r.route_code, r.enabled, r.dry_run, b.stopped_at, b.opened_at);
        v_ordered := v_policy ->> 'order' = 'subject';
        v_ids := '{}';
        v_looked := null;
        v_asked := array_position(p_routes, r.route_code);
        v_room := p_rooms[v_asked];
        v_after := p_after[v_asked];
        -- A probe: one, however much room there is.
        if v_held = 'breaker_open' and v_room > 0
           and (clock_timestamp() >= b.probe_at or b.opened_at > clock_timestamp() + interval '1 second') then
            v_room := 1;
        elsif v_held is not null then
            v_room := 0;
        end if;

        if v_room > 0 then
            -- Those that were waiting for somebody, or for their time.
            v_ids := array(
                select q.id
                  from (select h.id
                          from unnest(p_freed_routes, p_freed_keys) f(code, key)
                         cross join lateral (
                               select d.id, d.due_at, d.worker_name
                                 from public.iu_route_delivery d
                                where d.route_code = f.code and d.subject_key = f.key
                                order by d.id
                                limit 1) h
                         where f.code = r.route_code and h.due_at is null and h.worker_name = p_worker_name
                        union all
                        (select d.id
                           from public.iu_route_delivery d
                          where d.route_code = r.route_code and d.due_at <= clock_timestamp()
                            and d.worker_name = p_worker_name and d.id <> all (p_busy)
                            and not exists (select from public.iu_route_delivery e
                                             where e.route_code = d.route_code and e.subject_key = d.subject_key
                                               and e.id < d.id)
                          order by d.due_at
                          limit v_room)
                        union all
                        -- It began to wait in the future: a clock was set back, and its time would come far too late.
                        (select d.id
                           from public.iu_route_delivery d
                          where d.route_code = r.route_code and d.failed_at > clock_timestamp() + interval '1 second'
                            and d.due_at > clock_timestamp() and d.worker_name = p_worker_name and d.id <> all (p_busy)
                            and not exists (select from public.iu_route_delivery e
                                             where e.route_code = d.route_code and e.subject_key = d.subject_key
                                               and e.id < d.id)
                          order by d.failed_at
                          limit v_room)) q
                 limit v_room);
            -- Those that were never tried.
            if v_room > cardinality(v_ids) then
                if v_ordered then
                    v_most := 2 * v_room + 100;
                    select max(p.id), count(*), array_agg(p.id order by p.id) filter (where p.first)
                      into v_last, v_looked, v_more
                      from (select d.id,
                                   not exists (select from public.iu_route_delivery e
                                                where e.route_code = d.route_code and e.subject_key = d.subject_key
                                                  and e.id < d.id) as first
                              from public.iu_route_delivery d
                             where d.route_code = r.route_code and d.id > v_after and d.due_at is null
                               and d.worker_name = p_worker_name
                             order by d.id
                             limit v_most) p;
                    v_after := coalesce(case when cardinality(v_more) > v_room - cardinality(v_ids)
                                             then v_more[v_room - cardinality(v_ids)] else v_last end, v_after);
                    v_ids := v_ids || v_more[1:v_room - cardinality(v_ids)];
                else
                    v_more := array(select d.id
                                      from public.iu_route_delivery d
                                     where d.route_code = r.route_code and d.id > v_after and d.due_at is null
                                       and d.worker_name = p_worker_name
                                     order by d.id
                                     limit v_room - cardinality(v_ids));
                    v_after := coalesce(v_more[cardinality(v_more)], v_after);
                    v_ids := v_ids || v_more;
                end if;
            end if;
            if v_held = 'breaker_open' and cardinality(v_ids) > 0 then
                update public.iu_delivery_breaker x
                   set probing_id = v_ids[1], opened_at = least(x.opened_at, clock_timestamp()),
                       probe_at = clock_timestamp() + ((v_policy ->> 'deadline')::double precision + 5) * interval '1 second'
                 where x.route_code = r.route_code;
            end if;
            return query
            select null::jsonb, r.route_code::text, d.id, d.attempt_no, d.subject_key, d.event_ref,
                   coalesce(o.event_domain, r.event_domain)::text, coalesce(o.event_type, r.event_type)::text,
                   coalesce(o.event_stream, r.event_stream)::text,
                   coalesce(o.event_subject_ref::text, o.canonical_address::text), o.event_subject_table::text,
                   o.source_system::text, o.actor_ref::text, o.correlation_id::text, o.occurred_at::timestamptz,
                   o.created_at::timestamptz, d.traceparent, o.safe_payload::text
              from unnest(v_ids) with ordinality t(id, n)
             cross join lateral (
                   select x.*
                     from public.iu_route_delivery x
                    where x.route_code = r.route_code and x.id = t.id
                    limit 1) d
              left join lateral (
                   select x.* from public.event_outbox x where x.id = d.event_ref
                   union all
                   -- A replay has its snapshot, however long its event is gone.
                   select x.*
                     from public.iu_route_dead_letter l
                    cross join lateral jsonb_populate_record(null::public.event_outbox, l.event_snapshot) x
                    where d.replayed_by is not null
                      and l.idempotency_key = 'outbound:' || d.route_code || ':' || d.event_ref
                   limit 1) o on true
             order by t.n;
        end if;

        v_due := null;
        if v_held is null then
            select d.due_at into v_due
              from public.iu_route_delivery d
             where d.route_code = r.route_code and d.due_at is not null and d.id <> all (p_busy || v_ids)
               and not exists (select from public.iu_route_delivery e
                                where e.route_code = d.route_code and e.subject_key = d.subject_key and e.id < d.id)
             order by d.due_at
             limit 1;
        elsif v_held = 'breaker_open' then
            v_due := b.probe_at;
        end if;
        route_code := r.route_code;
        delivery_id := null;
        route := jsonb_build_object(
            'kind', r.target_kind, 'ref', r.target_ref, 'policy', v_policy, 'held', v_held, 'after', v_after,
            'more', coalesce(v_looked = v_most and cardinality(v_ids) < v_room, false),
            'due_in', extract(epoch from v_due - clock_timestamp()), 'why', coalesce(b.why, ''),
            'took', extract(epoch from v_now - statement_timestamp()));
        return next;
    end loop;
end
$$;
comment on function public.fn_iu_delivery_take(text, text[], integer[], bigint[], bigint[], text[], bigint[]) is
    'What is to be delivered next, and what holds each route. Writes nothing, but that a breaker probes.';

-- What a batch hands over to a consumer that has nothing under way: of each route what was never tried, beyond its position,
-- as far as there is room. What waits for its time, or for somebody, and what there is to say of a route, is left to who takes.
-- Strict: a batch that has queued nothing asks for no worker, and nothing is read.
create function public.fn_iu_delivery_hand_over(p_worker_name text, p_routes text[], p_rooms integer[], p_after bigint[])
returns table (
    route_code text, delivery_id bigint, attempt_no integer, subject_key bigint,
    -- as above
    event_ref uuid, event_domain text, event_type text, event_stream text, subject text, subject_table text, source_system text,
    actor_ref text, correlation_id text, occurred_at timestamptz, created_at timestamptz, traceparent text, payload text)
language plpgsql
strict
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
#variable_conflict use_column
begin
    return query
    select r.route_code::text, d.id, d.attempt_no, d.subject_key, d.event_ref,
           coalesce(o.event_domain, r.event_domain)::text, coalesce(o.event_type, r.event_type)::text,
           coalesce(o.event_stream, r.event_stream)::text,
           coalesce(o.event_subject_ref::text, o.canonical_address::text), o.event_subject_table::text,
           o.source_system::text, o.actor_ref::text, o.correlation_id::text, o.occurred_at::timestamptz,
           o.created_at::timestamptz, d.traceparent, o.safe_payload::text
      from unnest(p_routes, p_rooms, p_after) w(route_code, room, after)
     cross join lateral (
           select x.route_code, x.event_domain, x.event_type, x.event_stream,
                  x.delivery_policy ->> 'order' = 'subject' as ordered,
                  public.fn_iu_delivery_held(x.route_code, x.enabled, x.dry_run, b.stopped_at, b.opened_at) as held
             from public.iu_outbound_route x
             left join public.iu_delivery_breaker b on b.route_code = x.route_code
            where x.route_code = w.route_code and x.target_kind in ('workflow', 'external_endpoint')
            limit 1) r
     cross join lateral (
           select p.*
             from (select x.*
                     from public.iu_route_delivery x
                    where r.held is null and x.route_code = w.route_code and x.id > w.after and x.due_at is null
                      and x.worker_name = p_worker_name
                    order by x.id
                    limit 2 * w.room + 100) p
            where r.ordered is not true
               or not exists (select from public.iu_route_delivery e
                               where e.route_code = p.route_code and e.subject_key = p.subject_key and e.id < p.id)
            order by p.id
            limit w.room) d
      left join lateral (select x.* from public.event_outbox x where x.id = d.event_ref limit 1) o on true;
end
$$;
comment on function public.fn_iu_delivery_hand_over(text, text[], integer[], bigint[]) is
    'What was never tried of these routes, where nothing holds them. Writes nothing.';

-- Seen from outside --------------------------------------------------------------------------------------

create view public.v_iu_delivery as
select r.route_code, r.target_kind, r.target_ref, coalesce(d.pending, 0) as pending, coalesce(d.retrying, 0) as retrying,
       d.since, public.fn_iu_delivery_held(r.route_code, r.enabled, r.dry_run, b.stopped_at, b.opened_at) as held_by, b.why, b.opened_at, b.stopped_at
  from public.iu_outbound_route r
  left join public.iu_delivery_breaker b on b.route_code = r.route_code
  left join lateral (
       select count(*) as pending, count(*) filter (where x.tries > 0) as retrying, min(x.created_at) as since
         from public.iu_route_delivery x
        where x.route_code = r.route_code) d on true
 where r.target_kind in ('workflow', 'external_endpoint') and (r.enabled and not r.dry_run or d.pending > 0);
comment on view public.v_iu_delivery is
    'Every route that delivers, or has deliveries: how many are not over, since when, and what holds them back.';

create view public.v_iu_delivery_parked as
select h.route_code, h.subject_key, q.depth - 1 as depth, h.event_ref as waits_for, h.created_at as since, h.tries,
       h.due_at, h.failure_code
  from (select d.route_code, d.subject_key, min(d.id) as id, count(*) as depth
          from public.iu_route_delivery d
         where d.subject_key is not null
         group by d.route_code, d.subject_key
        having count(*) > 1) q
  join public.iu_route_delivery h on h.route_code = q.route_code and h.id = q.id;
comment on view public.v_iu_delivery_parked is
    'Subjects of which deliveries wait for an earlier one: how many, for which event, since when.';
