-- Taking the deliveries that are attempted next, and the views and checks of deliveries.
--
-- needs: 008, 009, 012, 019, functions/event_snapshot
-- locks: nothing that exists

-- Payload ------------------------------------------------------------------------------------------------
--
-- Payloads are converted one by one. A payload that is too large is neither converted as a whole nor sent to the
-- consumer (005).
create function public.fn_iu_event_payload(p_payload jsonb, p_limit bigint)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return case when not public.fn_iu_json_exceeds(p_payload, p_limit) then p_payload::text end;
end
$$;
comment on function public.fn_iu_event_payload(jsonb, bigint) is
    'A payload as text. Null: its text has more than p_limit bytes, or its binary form more than four times as many.';

-- Take ---------------------------------------------------------------------------------------------------

-- Deliveries of a route that may go on: freed by the settlement of the delivery before them, or due again.
--
-- The first delivery of a subject is the first row with a key >= the subject's key in the order of
-- iu_route_delivery_subject_idx. Here and below the query is written in this way, because no other index has that
-- order. A session may plan while the table is empty and all indexes cost the same; "the lowest id with this key" would
-- then be searched in the primary key, through all waiting rows.
create function public.fn_iu_delivery_due(
    p_worker_name text, p_route_code text, p_room integer, p_busy bigint[], p_freed_routes text[], p_freed_keys bigint[])
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    -- A variable, because an index cannot be searched with the result of a volatile function.
    v_now constant timestamptz := clock_timestamp();
begin
    return array(
        select q.id
          from (select h.id
                  from unnest(p_freed_routes, p_freed_keys) f(code, key)
                 cross join lateral (
                       select d.id, d.subject_key, d.due_at, d.worker_name
                         from public.iu_route_delivery d
                        where d.route_code = f.code and d.subject_key >= f.key
                        order by d.subject_key, d.id
                        limit 1) h
                 where f.code = p_route_code and h.subject_key = f.key and (h.due_at is null or h.due_at = 'infinity')
                   and h.worker_name = p_worker_name
                union all
                (select d.id
                   from public.iu_route_delivery d
                  where d.route_code = p_route_code and d.due_at <= v_now
                    and d.worker_name = p_worker_name and d.id <> all (p_busy)
                    and (d.subject_key is null
                         or d.id = (select e.id
                                      from public.iu_route_delivery e
                                     where e.route_code = d.route_code and e.subject_key >= d.subject_key
                                     order by e.subject_key, e.id
                                     limit 1))
                  order by d.due_at
                  limit p_room)
                union all
                -- failed_at lies in the future: the clock was set back, and without this branch the delivery would be
                -- due far too late.
                (select d.id
                   from public.iu_route_delivery d
                  where d.route_code = p_route_code and d.failed_at > v_now + interval '1 second'
                    and d.due_at > v_now and d.due_at < 'infinity' and d.worker_name = p_worker_name and d.id <> all (p_busy)
                    and (d.subject_key is null
                         or d.id = (select e.id
                                      from public.iu_route_delivery e
                                     where e.route_code = d.route_code and e.subject_key >= d.subject_key
                                     order by e.subject_key, e.id
                                     limit 1))
                  order by d.failed_at
                  limit p_room)) q
         limit p_room);
end
$$;
comment on function public.fn_iu_delivery_due(text, text, integer, bigint[], text[], bigint[]) is
    'Part of fn_iu_delivery_take; uses its planner settings. Ids of deliveries that are due again, or that were freed '
    'by the settlement of the delivery before them.';

-- Deliveries that were never attempted, beyond a position and up to the last one that a batch has queued. The batches
-- of a worker commit one after the other, so all deliveries up to that one are visible.
--
-- On an ordered route only the first delivery of each subject is returned; the position passes the others. If nearly
-- all rows that were looked at wait for an earlier delivery, the position passes all queued deliveries: a million
-- deliveries of one subject must not delay the next event of another subject. The deliveries that the position passed
-- unread are left to the sweep (022).
create function public.fn_iu_delivery_new(
    p_worker_name text, p_route_code text, p_ordered boolean, p_room integer, p_after bigint, p_queued bigint,
    out ids bigint[], out after bigint, out passed bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_most constant integer := 2 * p_room + 100;
    v_last   bigint;
    v_looked bigint;
begin
    if p_ordered then
        select max(p.id), count(*), array_agg(p.id order by p.id) filter (where p.first)
          into v_last, v_looked, ids
          from (select d.id,
                       d.due_at is null
                       and (d.subject_key is null
                            or d.id = (select e.id
                                         from public.iu_route_delivery e
                                        where e.route_code = d.route_code and e.subject_key >= d.subject_key
                                        order by e.subject_key, e.id
                                        limit 1)) as first
                  from public.iu_route_delivery d
                 where d.route_code = p_route_code and d.id > p_after and d.id <= p_queued
                   and d.worker_name = p_worker_name
                 order by d.id
                 limit v_most) p;
        if v_looked = v_most and coalesce(cardinality(ids), 0) < p_room then
            passed := v_last;
        end if;
    else
        ids := array(select d.id
                       from public.iu_route_delivery d
                      where d.route_code = p_route_code and d.id > p_after and d.id <= p_queued and d.due_at is null
                        and d.worker_name = p_worker_name
                      order by d.id
                      limit p_room);
    end if;
    after := case when cardinality(ids) >= p_room then ids[p_room] else p_queued end;
    ids := coalesce(ids[1:p_room], '{}');
end
$$;
comment on function public.fn_iu_delivery_new(text, text, boolean, integer, bigint, bigint) is
    'Part of fn_iu_delivery_take; uses its planner settings. Ids of deliveries that were never attempted, and the new '
    'position. passed: the position has passed the deliveries beyond this id unread. Null: it has passed none unread.';

-- The newest delivery that was never attempted, beyond a position; on an ordered route, the newest that is the first of
-- its subject. At most a hundred rows are read.
create function public.fn_iu_delivery_newest(p_worker_name text, p_route_code text, p_ordered boolean, p_after bigint)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    return array(
        select q.id
          from (select d.*
                  from public.iu_route_delivery d
                 where d.route_code = p_route_code and d.id > p_after
                 order by d.id desc
                 limit 100) q
         where q.due_at is null and q.worker_name = p_worker_name
           and (not p_ordered or q.subject_key is null
                or q.id = (select e.id
                             from public.iu_route_delivery e
                            where e.route_code = q.route_code and e.subject_key >= q.subject_key
                            order by e.subject_key, e.id
                            limit 1))
         order by q.id desc
         limit 1);
end
$$;
comment on function public.fn_iu_delivery_newest(text, text, boolean, bigint) is
    'Part of fn_iu_delivery_take; uses its planner settings. The id of the newest delivery that was never attempted, '
    'or an empty array.';

-- The deliveries with the given ids, in the order of their ids, each with its event, until the payloads have used up
-- p_bytes. Payloads are converted one by one, and the answer ends at the first one after the budget is used up.
--
-- A delivery that cannot be given to a target has a problem: event_missing, payload_too_large or event_out_of_range (a
-- time that Python cannot represent).
create function public.fn_iu_delivery_rows(
    p_route public.iu_outbound_route, p_ids bigint[], p_bytes bigint, p_payload_max bigint)
returns table (
    delivery_id bigint, attempt_no integer, subject_key bigint, alone boolean, problem text,
    -- the attributes of an event, in the order of the consumer's class Event (model/delivery.py)
    event_ref uuid, event_domain text, event_type text, event_stream text, subject text, subject_table text, source_system text,
    actor_ref text, correlation_id text, occurred_at timestamptz, created_at timestamptz, traceparent text, payload text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    -- One index scan for all ids. PostgreSQL 16 and older may filter all deliveries of the route by these ids instead,
    -- if they plan while the table is empty; there the ids are looked up one by one.
    v_one_scan constant boolean := current_setting('server_version_num')::integer >= 170000;
    v_payload  jsonb;
    v_found    boolean;
    v_left     bigint := p_bytes;
begin
    for delivery_id, attempt_no, subject_key, alone, event_ref, event_domain, event_type, event_stream, subject,
        subject_table, source_system, actor_ref, correlation_id, occurred_at, created_at, traceparent, v_payload, v_found in
        select d.id, d.attempt_no, d.subject_key, d.alone, d.event_ref, coalesce(o.event_domain, p_route.event_domain),
               coalesce(o.event_type, p_route.event_type), coalesce(o.event_stream, p_route.event_stream),
               coalesce(o.event_subject_ref::text, o.canonical_address), o.event_subject_table, o.source_system, o.actor_ref,
               o.correlation_id::text, o.occurred_at, o.created_at, d.traceparent, o.safe_payload, o.id is not null
          from (select x.*
                  from public.iu_route_delivery x
                 where v_one_scan and x.route_code = p_route.route_code and x.id = any (p_ids)
                union all
                select x.*
                  from unnest(case when not v_one_scan then p_ids end) t(id)
                 cross join lateral (
                       select y.*
                         from public.iu_route_delivery y
                        where y.route_code = p_route.route_code and y.id = t.id
                        limit 1) x) d
          left join lateral (
               select x.* from public.event_outbox x where x.id = d.event_ref
               union all
               -- A replay uses the snapshot of its dead letter, so its event may be missing from the outbox.
               select x.*
                 from public.iu_route_dead_letter l
                cross join lateral jsonb_populate_record(null::public.event_outbox, l.event_snapshot) x
                where d.replayed_by is not null
                  and l.idempotency_key = 'outbound:' || d.route_code || ':' || d.event_ref
                  and not l.event_snapshot ? 'too_large'
               limit 1) o on true
         order by d.id
    loop
        exit when v_left <= 0;
        problem := case when not v_found then 'event_missing' end;
        if occurred_at not between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00' then
            occurred_at := null;
            problem := 'event_out_of_range';
        end if;
        if created_at not between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00' then
            created_at := null;
            problem := 'event_out_of_range';
        end if;
        if v_payload is null then
            payload := case when v_found then 'null' end;
        elsif pg_column_size(v_payload) < 2000 and pg_column_compression(v_payload) is null then
            payload := v_payload::text;
        else
            payload := public.fn_iu_event_payload(v_payload, p_payload_max);
            problem := coalesce(problem, case when payload is null then 'payload_too_large' end);
        end if;
        v_left := v_left - coalesce(octet_length(payload), 0) - 500;
        return next;
    end loop;
end
$$;
comment on function public.fn_iu_delivery_rows(public.iu_outbound_route, bigint[], bigint, bigint) is
    'Part of fn_iu_delivery_take; uses its planner settings. Deliveries of a route with their events, within a budget '
    'of p_bytes bytes of payload.';

-- For each route the caller names its free capacity in deliveries (p_rooms), the id up to which it has taken deliveries
-- that were never attempted (p_after), and its free capacity in bytes of payload (p_bytes). p_busy holds the ids of the
-- deliveries in its memory that were attempted before, and of trial deliveries; p_freed_routes and p_freed_keys name
-- the subjects with a settled first delivery.
--
-- The answer has a row for each delivery, and one for each route with the reason why it is paused. Nothing is written,
-- except that a circuit breaker becomes half-open.
create function public.fn_iu_delivery_take(
    p_worker_name text, p_routes text[], p_rooms integer[], p_after bigint[], p_bytes bigint[], p_busy bigint[],
    p_freed_routes text[], p_freed_keys bigint[], p_payload_max bigint)
returns table (
    route jsonb, route_code text, delivery_id bigint, attempt_no integer, subject_key bigint, alone boolean, problem text,
    -- as in fn_iu_delivery_rows
    event_ref uuid, event_domain text, event_type text, event_stream text, subject text, subject_table text, source_system text,
    actor_ref text, correlation_id text, occurred_at timestamptz, created_at timestamptz, traceparent text, payload text)
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
-- Due rows are read in the order of their index (012). Sorting would read all waiting rows in every call.
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
    v_probe   boolean;
    v_ordered boolean;
    v_new     record;
    v_after   bigint;
    v_passed  bigint;
    v_queued  bigint;
    v_ids     bigint[];
    v_given   bigint;
    v_due     timestamptz;
    v_now     timestamptz;
begin
    for v_route in
        select x as route, y as breaker, w.queued_id
          from public.iu_route_worker_cursor w
          join public.iu_outbound_route x on x.event_domain = w.event_domain
          left join public.iu_delivery_breaker y on y.route_code = x.route_code
         where w.worker_name = p_worker_name
           and x.target_kind in ('workflow', 'external_endpoint')
           and (x.enabled and not x.dry_run
                or exists (select from public.iu_route_delivery d where d.route_code = x.route_code))
    loop
        r := v_route.route;
        b := v_route.breaker;
        v_policy := public.fn_iu_delivery_policy(r.delivery_policy);
        v_now := clock_timestamp();
        v_held := public.fn_iu_delivery_paused_by(r.route_code, r.enabled, r.dry_run, b.stopped_at, b.opened_at);
        v_ids := '{}';
        v_passed := null;
        v_given := 0;
        v_asked := array_position(p_routes, r.route_code);
        v_room := p_rooms[v_asked];
        v_after := p_after[v_asked];
        v_ordered := v_policy ->> 'order' = 'subject';
        v_probe := v_held in ('breaker_open', 'dead_letter_budget') and v_room > 0
                   and (v_now >= b.probe_at or b.opened_at > v_now + interval '1 second'
                        -- The caller does not have the trial delivery that is in flight: it was given to a consumer
                        -- that has ended, or in an answer that came too late.
                        or b.probing_id <> all (p_busy));
        v_room := case when v_held is null then v_room when v_probe then 1 else 0 end;

        if v_room > 0 then
            -- Trial deliveries are in turns the newest delivery, the oldest one that was never attempted, and one that
            -- has failed.
            if v_probe and b.probes % 3 = 0 then
                v_ids := public.fn_iu_delivery_newest(p_worker_name, r.route_code, v_ordered, v_after);
            elsif (v_probe and b.probes % 3 = 1) is not true then
                v_ids := public.fn_iu_delivery_due(
                    p_worker_name, r.route_code, v_room, p_busy, case when v_probe then null else p_freed_routes end,
                    p_freed_keys);
            end if;
            v_queued := v_route.queued_id;
            if v_queued is null then
                -- The cursor was created again and has queued nothing yet.
                select max(d.id) into v_queued
                  from public.iu_route_delivery d
                 where d.route_code = r.route_code and d.replayed_by is null;
            end if;
            if cardinality(v_ids) < v_room and v_after < v_queued then
                select n.ids, n.after, n.passed into v_new
                  from public.fn_iu_delivery_new(p_worker_name, r.route_code, v_ordered, v_room - cardinality(v_ids),
                                                 v_after, v_queued) n;
                v_ids := v_ids || v_new.ids;
                v_after := v_new.after;
                v_passed := v_new.passed;
            end if;
            if v_probe and cardinality(v_ids) = 0 then
                v_ids := public.fn_iu_delivery_due(
                    p_worker_name, r.route_code, v_room, p_busy, p_freed_routes, p_freed_keys);
            end if;
            if v_probe and cardinality(v_ids) > 0 then
                b.probing_id := v_ids[1];
                update public.iu_delivery_breaker x
                   set probing_id = v_ids[1], opened_at = least(x.opened_at, clock_timestamp()),
                       probe_at = clock_timestamp() + ((v_policy ->> 'deadline')::double precision + 5) * interval '1 second'
                 where x.route_code = r.route_code;
            end if;
            v_ids := array(select i.id from unnest(v_ids) i(id) group by i.id order by i.id);
            return query
            select null::jsonb, r.route_code::text, d.*
              from public.fn_iu_delivery_rows(r, v_ids, p_bytes[v_asked], p_payload_max) d;
            get diagnostics v_given = row_count;
            -- The position must not pass a delivery that was kept back by the budget of bytes.
            if v_given < cardinality(v_ids) then
                v_after := least(v_after, v_ids[v_given + 1] - 1);
            end if;
        end if;

        v_due := null;
        if v_held is null then
            select d.due_at into v_due
              from public.iu_route_delivery d
             where d.route_code = r.route_code and d.due_at < 'infinity' and d.id <> all (p_busy || v_ids)
               and (d.subject_key is null
                    or d.id = (select e.id
                                 from public.iu_route_delivery e
                                where e.route_code = d.route_code and e.subject_key >= d.subject_key
                                order by e.subject_key, e.id
                                limit 1))
             order by d.due_at
             limit 1;
        elsif v_held in ('breaker_open', 'dead_letter_budget') then
            v_due := b.probe_at;
        end if;
        route_code := r.route_code;
        delivery_id := null;
        route := jsonb_build_object(
            'kind', r.target_kind, 'ref', r.target_ref, 'policy', v_policy, 'held', v_held, 'after', v_after,
            'passed', v_passed, 'kept_back', v_given < cardinality(v_ids),
            'due_in', extract(epoch from v_due - clock_timestamp()), 'why', coalesce(b.why, ''),
            'probing', b.probing_id, 'took', extract(epoch from v_now - statement_timestamp()));
        return next;
    end loop;
end
$$;
comment on function public.fn_iu_delivery_take(
    text, text[], integer[], bigint[], bigint[], bigint[], text[], bigint[], bigint) is
    'The deliveries that are attempted next, and for each route the reason why it is paused. Writes nothing, except '
    'that a circuit breaker becomes half-open.';

-- The deliveries that a batch hands over to a consumer that has no delivery in flight: for each route the deliveries
-- that were never attempted, beyond its position, within the free capacity. Deliveries that are due again, and paused
-- routes, are left to fn_iu_delivery_take. This function is part of the statement of the batch, so it must not fail: it
-- converts only small payloads, and a delivery that is not handed over has the problem not_handed_over.
--
-- Strict: a batch that has queued nothing passes null as the worker, and nothing is read.
create function public.fn_iu_delivery_hand_over(p_worker_name text, p_routes text[], p_rooms integer[], p_after bigint[])
returns table (
    route_code text, delivery_id bigint, attempt_no integer, subject_key bigint, alone boolean, problem text,
    -- as in fn_iu_delivery_rows
    event_ref uuid, event_domain text, event_type text, event_stream text, subject text, subject_table text, source_system text,
    actor_ref text, correlation_id text, occurred_at timestamptz, created_at timestamptz, traceparent text, payload text)
language plpgsql
strict
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_payload jsonb;
    v_bytes   bigint := 0;
begin
    alone := false;
    for route_code, delivery_id, attempt_no, subject_key, event_ref, event_domain, event_type, event_stream, subject,
        subject_table, source_system, actor_ref, correlation_id, occurred_at, created_at, traceparent, v_payload in
        select r.route_code, d.id, d.attempt_no, d.subject_key, d.event_ref, coalesce(o.event_domain, r.event_domain),
               coalesce(o.event_type, r.event_type), coalesce(o.event_stream, r.event_stream),
               coalesce(o.event_subject_ref::text, o.canonical_address), o.event_subject_table, o.source_system, o.actor_ref,
               o.correlation_id::text, o.occurred_at, o.created_at, d.traceparent, o.safe_payload
          from unnest(p_routes, p_rooms, p_after) w(route_code, room, after)
         cross join lateral (
               select x.route_code, x.event_domain, x.event_type, x.event_stream,
                      x.delivery_policy ->> 'order' = 'subject' as ordered,
                      public.fn_iu_delivery_paused_by(x.route_code, x.enabled, x.dry_run, b.stopped_at, b.opened_at) as held
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
                where r.ordered is not true or p.subject_key is null
                   or p.id = (select e.id
                                from public.iu_route_delivery e
                               where e.route_code = p.route_code and e.subject_key >= p.subject_key
                               order by e.subject_key, e.id
                               limit 1)
                order by p.id
                limit w.room) d
          left join lateral (select x.* from public.event_outbox x where x.id = d.event_ref limit 1) o on true
    loop
        v_bytes := v_bytes + coalesce(pg_column_size(v_payload), 0);
        if v_bytes < 4000 and pg_column_compression(v_payload) is null
           and occurred_at between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00'
           and created_at between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00' then
            problem := null;
            payload := coalesce(v_payload::text, 'null');
        else
            problem := 'not_handed_over';
            occurred_at := null;
            created_at := null;
            payload := null;
        end if;
        return next;
    end loop;
end
$$;
comment on function public.fn_iu_delivery_hand_over(text, text[], integer[], bigint[]) is
    'Deliveries of the given routes that were never attempted, if the routes are not paused. Writes nothing.';

-- Views and checks ---------------------------------------------------------------------------------------

create view public.v_iu_delivery as
select r.route_code, r.target_kind, r.target_ref, coalesce(d.pending, 0) as pending, coalesce(d.retrying, 0) as retrying,
       d.since, coalesce(h.paused_by, case when u.why is not null then 'no_target' end) as paused_by,
       case when h.paused_by is null then u.why else b.why end as why, b.opened_at, b.stopped_at,
       case when h.paused_by is null then u.hint
            when h.paused_by = 'breaker_open' and b.why = 'address_refused'
                then 'Its host has an address that is not public. If it is meant, start the consumer with '
                     'IU_LISTEN_ALLOW_PRIVATE=HOST'
            when h.paused_by = 'dead_letter_budget'
                then 'Its target took no event between so many dead letters, and is attempted again and again: the first '
                     'event that it takes lets the route go on. What it said: iu-listen dead-letter list --route '
                     || r.route_code || '. To go on at once: iu-listen route resume ' || r.route_code end as hint
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
 where r.target_kind in ('workflow', 'external_endpoint') and (r.enabled and not r.dry_run or d.pending > 0);
comment on view public.v_iu_delivery is
    'Each live route with a target that the consumer calls, and each such route with pending deliveries: their number, '
    'since when the oldest waits, and why the route is paused.';

-- Detects waiting deliveries while none is settled and no reason is known: no closed switch, no open circuit breaker,
-- no missing target. The limit is the deadline of the route plus one minute, because a single attempt may take as long
-- as the deadline. A delivery behind an earlier one of its subject waits for that one. Of the first hundred deliveries,
-- the oldest one that does not wait in this way is judged, so a subject with a long queue costs a bounded number of
-- rows.
create function public.fn_iu_delivery_progress_missing(p_worker_name text)
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
    select coalesce(array_agg(format('deliveries of route %s wait, the oldest for %s s, and none was settled', w.route_code,
                                     round(extract(epoch from clock_timestamp() - w.since))) order by w.route_code), '{}')
      from (select r.route_code,
                   (public.fn_iu_delivery_policy(r.delivery_policy) ->> 'deadline')::double precision + 60 as seconds,
                   (select n.created_at
                      from (select d.id, d.subject_key, d.created_at
                              from public.iu_route_delivery d
                             where d.route_code = r.route_code and d.due_at is null and d.worker_name = p_worker_name
                             order by d.id
                             limit 100) n
                     where n.subject_key is null
                        or n.id = (select e.id
                                     from public.iu_route_delivery e
                                    where e.route_code = r.route_code and e.subject_key >= n.subject_key
                                    order by e.subject_key, e.id
                                    limit 1)
                     order by n.id
                     limit 1) as new_since,
                   (select d.due_at
                      from public.iu_route_delivery d
                     where d.route_code = r.route_code and d.due_at is not null and d.worker_name = p_worker_name
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

create view public.v_iu_delivery_parked as
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
