-- The steps of a batch. fn_iu_route_worker_run (009) calls them in the order in which they follow here.
--
-- Each step gets the values that it needs as one of the types of 021, and answers what it has found or done. A step that
-- reads or writes a table is volatile: each of its statements takes a snapshot of its own, as the statements of the batch
-- do. The planner settings of the batch are in force in its steps, and a plan is kept for the session, so only the batch
-- may call them; a test checks it. Only the steps that most batches do not call set them again: for a single event, six
-- settings in each step would take one percent of the time.
--
-- kind: repeatable
-- needs: 008, 021, functions/outbox_position, functions/trace_ids, functions/idempotency_key
-- calls: 012, functions/batch_failure, functions/delivery_switches, functions/event_snapshot, functions/sql_targets
-- locks: nothing that other sessions use

-- Errors -------------------------------------------------------------------------------------------------

-- Only errors that an event can cause count as failures of the event: bad data, a violated rule, a limit, a RAISE. Errors
-- such as a full disk, a lost lock or a missing privilege concern the whole batch, which is rolled back and repeated.
create or replace function public.fn_iu_error_of_event(p_sqlstate text)
returns boolean
language sql
immutable
return left(p_sqlstate, 2) = any (array['22', '23', '44', '54', 'P0']);
comment on function public.fn_iu_error_of_event(text) is
    'Whether an event can be the cause of an error with this SQLSTATE.';

-- A target is code of the application, so any other error of a target counts as a failure of the event.
create or replace function public.fn_iu_error_of_system(p_sqlstate text)
returns boolean
language sql
immutable
return p_sqlstate ~ '^(08|40|53|57|58|XX|55P03)';
comment on function public.fn_iu_error_of_system(text) is
    'Whether an error with this SQLSTATE concerns the system and not an event: connections, deadlocks, resources, an '
    'operator''s intervention, internal errors, and a lock that was not waited for.';

create or replace function public.fn_iu_decision_status(p_decision text)
returns text
language sql
immutable
return case p_decision when 'delivered' then 'sent' when 'dry_run' then 'dry_run' else 'skipped' end;
comment on function public.fn_iu_decision_status(text) is
    'The status of the attempt that records this decision of fn_iu_route_dispatch.';

-- Idle check ---------------------------------------------------------------------------------------------

create or replace function public.fn_iu_batch_idle(p_cursor public.iu_route_worker_cursor)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_from_xid constant xid8 := pg_snapshot_xmax(p_cursor.prev);
begin
    return not exists (select from (select o.id
                                      from public.event_outbox o
                                     where o.event_domain = p_cursor.event_domain and o.xact_id >= v_from_xid
                                     order by o.xact_id
                                     limit 1) new)
       and not exists (select from pg_snapshot_xip(p_cursor.prev) x(xid)
                        cross join lateral (
                              select o.id
                                from public.event_outbox o
                               where o.event_domain = p_cursor.event_domain and o.xact_id between x.xid and x.xid
                                 and (o.xact_id = p_cursor.own_xid and o.event_seq <= p_cursor.own_seq) is not true
                               order by o.xact_id
                               limit 1) ended);
end
$$;
comment on function public.fn_iu_batch_idle(public.iu_route_worker_cursor) is
    'Whether there is no event after this cursor, which is not within a tick. Takes no lock.';

-- Routes -------------------------------------------------------------------------------------------------

-- The routes are read once: a route that changes during the batch must not take an event twice, or miss it. The number
-- of attempts of a decision is computed by route as well; it is 1 if the route shares no events with others. That is the
-- usual case, and needs no look-up for each event.
create or replace function public.fn_iu_batch_routes(p_cursor public.iu_route_worker_cursor)
returns public.iu_batch_routes
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_routes public.iu_batch_routes;
begin
    select array_agg(x.route), array_agg(x.route_code) filter (where x.enabled and not x.dry_run),
           array_agg(x.event_stream || ' ' || x.event_type) filter (where x.live),
           jsonb_object_agg(x.route_code, x.n) filter (where x.enabled and x.n > 1), max(x.n),
           exists (select from public.iu_route_worker_cursor w
                    where w.event_domain = p_cursor.event_domain and w.worker_name <> p_cursor.worker_name)
      into v_routes.routes, v_routes.live, v_routes.live_kinds, v_routes.counts, v_routes.fan_out, v_routes.shared
      from (select r as route, r.route_code, r.event_type, r.event_stream, r.enabled, r.dry_run,
                   count(*) filter (where r.enabled) over kind as n,
                   bool_and(not r.dry_run) filter (where r.enabled) over kind as live
              from public.iu_outbound_route r
             where r.event_domain = p_cursor.event_domain
            window kind as (partition by r.event_type, r.event_stream)) x;
    if v_routes.live is not null then
        v_routes.queues := public.fn_iu_delivery_queued_routes(v_routes.routes);
    end if;
    return v_routes;
end
$$;
comment on function public.fn_iu_batch_routes(public.iu_route_worker_cursor) is
    'The routes of the domain of a cursor.';

-- Tick ---------------------------------------------------------------------------------------------------

-- The caller has locked the cursor in an earlier statement.
create or replace function public.fn_iu_batch_tick(p_cursor public.iu_route_worker_cursor)
returns public.iu_batch_range
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_range public.iu_batch_range;
    v_fresh constant boolean := p_cursor.tick is null;
begin
    v_range.from_xid := pg_snapshot_xmax(p_cursor.prev);
    -- The tick is the snapshot of this statement. The sequence is read after the snapshot, so each event that is visible
    -- in the tick has a number not beyond the one that is read.
    select t.tick, pg_snapshot_xmax(t.tick), x.open,
           array(select p.xid from pg_snapshot_xip(p_cursor.prev) p(xid) where pg_visible_in_snapshot(p.xid, t.tick)),
           case when v_fresh then s.last_value - (not s.is_called)::integer else p_cursor.hi_seq end,
           case when v_fresh then f.floor else p_cursor.tick_floor end
      into v_range.tick, v_range.to_xid, v_range.open, v_range.ended, v_range.hi_seq, v_range.tick_floor
      from (select case when v_fresh then public.fn_iu_outbox_tick() else p_cursor.tick end as tick offset 0) t
     cross join lateral (select array(select pg_snapshot_xip(t.tick)) as open offset 0) x
     cross join public.event_outbox_event_seq s
     cross join lateral (
           select min(q.event_seq) as floor
             from (select o.event_seq
                     from public.event_outbox o
                    where v_fresh and o.event_domain = p_cursor.event_domain
                      and o.xact_id >= v_range.from_xid and o.xact_id < pg_snapshot_xmax(t.tick)
                      and o.xact_id <> all (x.open)
                    order by o.xact_id) q) f;
    if v_fresh and (v_range.to_xid < v_range.from_xid
                    or pg_snapshot_xmin(v_range.tick) < pg_snapshot_xmin(p_cursor.prev)) then
        raise exception 'the tick % lies before the cursor %', v_range.tick, p_cursor.prev
            using errcode = 'serialization_failure', hint = 'Run the worker in READ COMMITTED.';
    end if;
    v_range.after_seq := coalesce(p_cursor.pos_seq, -9223372036854775808);
    v_range.after_id := coalesce(p_cursor.pos_id, '00000000-0000-0000-0000-000000000000');
    if p_cursor.pos_seq >= v_range.tick_floor then
        v_range.low_seq := p_cursor.pos_seq;
        v_range.low_id := p_cursor.pos_id;
    else
        v_range.low_seq := v_range.tick_floor - 1;
        v_range.low_id := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    end if;
    return v_range;
end
$$;
comment on function public.fn_iu_batch_tick(public.iu_route_worker_cursor) is
    'What a batch may read: the rest of the tick of the cursor; if it has none, a new tick, which is the snapshot of this '
    'call. Raises serialization_failure if that tick lies before the cursor.';

create or replace function public.fn_iu_batch_own_events(p_cursor public.iu_route_worker_cursor, p_own_xid xid8)
returns public.iu_batch_range
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_range public.iu_batch_range;
begin
    v_range.ended := array[p_own_xid];
    v_range.after_seq := coalesce(p_cursor.own_seq, -9223372036854775808);
    v_range.after_id := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    return v_range;
end
$$;
comment on function public.fn_iu_batch_own_events(public.iu_route_worker_cursor, xid8) is
    'What the second pass of a batch may read: the events that its own transaction has written before.';

-- Page ---------------------------------------------------------------------------------------------------

create or replace function public.fn_iu_batch_page(
    p_cursor public.iu_route_worker_cursor, p_range public.iu_batch_range, p_routes public.iu_batch_routes,
    p_limit bigint, p_batch_limit integer)
returns public.iu_batch_page
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_page public.iu_batch_page;
begin
    select array_agg(q.id), array_agg(q.event_type), array_agg(q.event_stream), array_agg(q.event_seq),
           array_agg(q.traceparent), array_agg(q.created_at), count(*),
           case when p_routes.live_kinds <> '{}' then array_agg(q.event_stream || ' ' || q.event_type) end,
           count(*) >= p_limit
      into v_page.ids, v_page.types, v_page.streams, v_page.seqs, v_page.contexts, v_page.created, v_page.size,
           v_page.kinds, v_page.is_full
      from (select u.id, u.event_type, u.event_stream, u.event_seq, u.traceparent, u.created_at
              from (select r.id, r.event_type, r.event_stream, r.event_seq, r.traceparent, r.created_at
                      from unnest(p_range.ended) x(xid)
                     cross join lateral (
                           select o.id, o.event_type, o.event_stream, o.event_seq,
                                  public.fn_iu_trace_context(o.traceparent) as traceparent, o.created_at
                             from public.event_outbox o
                            where o.event_domain = p_cursor.event_domain and o.xact_id <= x.xid
                              and (o.xact_id, o.event_seq, o.id) > (x.xid, p_range.after_seq, p_range.after_id)
                              and (o.xact_id = p_cursor.own_xid and o.event_seq <= p_cursor.own_seq) is not true
                            order by o.xact_id, o.event_seq, o.id
                            limit p_limit) r
                    union all
                    (select o.id, o.event_type, o.event_stream, o.event_seq,
                            public.fn_iu_trace_context(o.traceparent) as traceparent, o.created_at
                       from public.event_outbox o
                      where o.event_domain = p_cursor.event_domain
                        and (o.event_seq, o.id) > (p_range.low_seq, p_range.low_id)
                        and o.xact_id >= p_range.from_xid and o.xact_id < p_range.to_xid
                        and o.xact_id <> all (p_range.open)
                        and (o.xact_id = p_cursor.own_xid and o.event_seq <= p_cursor.own_seq) is not true
                      order by o.event_seq, o.id
                      limit p_limit)) u
             order by u.event_seq, u.id
             limit p_limit) q;
    if p_routes.fan_out > 10 or p_cursor.failed_event is not null then
        return public.fn_iu_batch_shorten(p_cursor, v_page, p_routes, p_range.tick is not null, p_batch_limit);
    end if;
    return v_page;
end
$$;
comment on function public.fn_iu_batch_page(
    public.iu_route_worker_cursor, public.iu_batch_range, public.iu_batch_routes, bigint, integer) is
    'The next events of a range: at most p_limit, and no more than fn_iu_batch_shorten allows.';

create or replace function public.fn_iu_batch_shorten(
    p_cursor public.iu_route_worker_cursor, p_page public.iu_batch_page, p_routes public.iu_batch_routes,
    p_of_tick boolean, p_batch_limit integer)
returns public.iu_batch_page
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_size  integer;
    v_place integer;
begin
    -- The cost of a batch is its attempts, and an event has one for each of its routes.
    if p_routes.fan_out > 10 then
        v_size := public.fn_iu_route_page(p_cursor.event_domain, p_page.types, p_page.streams, p_batch_limit);
    end if;
    -- An event that made a batch fail is taken alone. The events before it are routed first.
    if p_of_tick and p_cursor.failed_event is not null then
        v_place := array_position(p_page.ids, p_cursor.failed_event);
        v_size := least(v_size, v_place - (v_place > 1)::integer);
    end if;
    if v_size < p_page.size then
        p_page.ids := p_page.ids[:v_size];
        p_page.types := p_page.types[:v_size];
        p_page.streams := p_page.streams[:v_size];
        p_page.seqs := p_page.seqs[:v_size];
        p_page.contexts := p_page.contexts[:v_size];
        p_page.created := p_page.created[:v_size];
        p_page.kinds := p_page.kinds[:v_size];
        p_page.size := v_size;
        p_page.is_full := true;
    end if;
    return p_page;
end
$$;
comment on function public.fn_iu_batch_shorten(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, boolean, integer) is
    'A page, shortened if its events have many routes, or if one of them made a batch fail.';

-- Dry runs -----------------------------------------------------------------------------------------------

create or replace function public.fn_iu_batch_attempts(
    p_cursor public.iu_route_worker_cursor, p_page public.iu_batch_page, p_routes public.iu_batch_routes,
    p_from integer, p_to integer)
returns table (event_ref uuid, route_kind text, route_code text, status text, decision text, delivered boolean,
               idempotency_key text, attempt_no integer, route_count smallint, traceparent text)
language sql
stable
begin atomic
    select k.id, 'outbound', coalesce(r.route_code, '(none)'),
           case when r.route_code is null then 'skipped' else 'dry_run' end,
           case when r.route_code is not null then 'dry_run'
                when exists (select from unnest((p_routes).routes) d
                              where d.event_domain = (p_cursor).event_domain and d.event_type = k.event_type
                                and d.event_stream = k.event_stream) then 'route_disabled'
                else 'no_route' end,
           false,
           public.fn_iu_idempotency_key(coalesce(r.route_code, '(none)'), k.id), 1,
           coalesce(((p_routes).counts ->> r.route_code)::smallint, 1::smallint), k.traceparent
      from unnest((p_page).ids[p_from:p_to], (p_page).types[p_from:p_to], (p_page).streams[p_from:p_to],
                  (p_page).contexts[p_from:p_to])
           with ordinality k(id, event_type, event_stream, traceparent, n)
      left join unnest((p_routes).routes) r
        on r.event_domain = (p_cursor).event_domain and r.event_type = k.event_type
       and r.event_stream = k.event_stream and r.enabled
     where r.route_code is null or r.dry_run
     order by k.n;
end;
comment on function public.fn_iu_batch_attempts(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, integer, integer) is
    'The attempts of a part of a page that need no delivery, in order. A part of the statements of fn_iu_batch_decide.';

-- Attempts that may exist already are inserted with ON CONFLICT, which costs a look-up and a further record in the WAL for
-- each row. An event with a number drawn after the previous tick, on a domain with one worker, cannot have been decided
-- before, as in fn_iu_batch_enqueue. If it has attempts nevertheless, written by hand or by a restore, the part is
-- repeated.
-- Routes the page in one statement. If that fails because of one event, it halves the page until the event is alone.
create or replace function public.fn_iu_batch_decide(
    p_cursor public.iu_route_worker_cursor, p_page public.iu_batch_page, p_routes public.iu_batch_routes,
    p_result public.iu_batch_result)
returns public.iu_batch_result
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    -- The parts of the page that are still to be routed, as pairs [from, to]; the last pair is next.
    v_parts   integer[] := array[1, p_page.size];
    v_from    integer;
    v_to      integer;
    v_count   bigint;
    v_skipped bigint;
    v_route   text;
    v_state   text;
    v_message text;
    v_new     boolean;
    v_exists  boolean := false;
begin
    while cardinality(v_parts) > 0 loop
        v_from := v_parts[cardinality(v_parts) - 1];
        v_to := v_parts[cardinality(v_parts)];
        v_parts := trim_array(v_parts, 2);
        begin
            v_new := not v_exists and not p_routes.shared and p_page.seqs[v_from] > p_cursor.fresh_seq;
            if v_new then
                with written as (
                    insert into public.iu_route_attempt
                        (event_ref, route_kind, route_code, status, decision, delivered,
                         idempotency_key, attempt_no, route_count, traceparent)
                    select * from public.fn_iu_batch_attempts(p_cursor, p_page, p_routes, v_from, v_to)
                    returning status)
                select count(*), count(*) filter (where w.status = 'skipped') into v_count, v_skipped from written w;
            else
                with written as (
                    insert into public.iu_route_attempt
                        (event_ref, route_kind, route_code, status, decision, delivered,
                         idempotency_key, attempt_no, route_count, traceparent)
                    select * from public.fn_iu_batch_attempts(p_cursor, p_page, p_routes, v_from, v_to)
                    on conflict (idempotency_key, attempt_no) do nothing
                    returning status)
                select count(*), count(*) filter (where w.status = 'skipped') into v_count, v_skipped from written w;
            end if;
            p_result.attempts := p_result.attempts + v_count;
            p_result.skipped := p_result.skipped + v_skipped;
        exception when others or assert_failure then
            get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
            if not public.fn_iu_error_of_event(v_state) then
                raise;
            end if;
            if v_new and v_state = '23505' then
                v_exists := true;
                v_parts := v_parts || array[v_from, v_to];
            elsif v_from < v_to then
                v_parts := v_parts || array[(v_from + v_to) / 2 + 1, v_to, v_from, (v_from + v_to) / 2];
            else
                for v_route in
                    select coalesce(r.route_code, '(none)')
                      from (select 1) one
                      left join unnest(p_routes.routes) r
                        on r.event_domain = p_cursor.event_domain and r.event_type = p_page.types[v_from]
                       and r.event_stream = p_page.streams[v_from] and r.enabled and r.dry_run
                loop
                    p_result.failed_ids := p_result.failed_ids || p_page.ids[v_from];
                    p_result.failed_routes := p_result.failed_routes || v_route;
                    p_result.failed_whys := p_result.failed_whys || (v_state || ': ' || v_message);
                end loop;
            end if;
        end;
    end loop;
    return p_result;
end
$$;
comment on function public.fn_iu_batch_decide(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, public.iu_batch_result) is
    'Writes the attempts of a page that need no delivery: dry_run for each route that is a dry run, skipped for an event '
    'without an enabled route.';

-- Queued deliveries --------------------------------------------------------------------------------------

-- While a switch is closed, a queued delivery waits, and an attempt records the reason.
create or replace function public.fn_iu_batch_enqueue(
    p_cursor public.iu_route_worker_cursor, p_page public.iu_batch_page, p_routes public.iu_batch_routes,
    p_result public.iu_batch_result)
returns public.iu_batch_result
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_count   bigint;
    v_last_id bigint;
    v_paused  jsonb;
begin
    with routes as materialized (
        select r.route_code, r.event_domain, r.event_type, r.event_stream,
               r.delivery_policy ->> 'order' = 'subject' as ordered, p_routes.queues ->> r.route_code as switch
          from unnest(p_routes.routes) r
         where p_routes.queues ? r.route_code
    ), queued as (
        insert into public.iu_route_delivery
            (worker_name, route_code, event_ref, subject_key, attempt_no, route_count, traceparent)
        select p_cursor.worker_name, r.route_code, k.id,
               case when r.ordered
                    then (select hashtextextended(coalesce(o.event_subject_ref::text, o.canonical_address), 0)
                            from public.event_outbox o where o.id = k.id) end,
               case when r.switch is null then 1 else 2 end,
               coalesce((p_routes.counts ->> r.route_code)::smallint, 1), k.traceparent
          from unnest(p_page.ids, p_page.types, p_page.streams, p_page.contexts, p_page.seqs)
               with ordinality k(id, event_type, event_stream, traceparent, event_seq, n)
          join routes r
            on r.event_domain = p_cursor.event_domain and r.event_type = k.event_type and r.event_stream = k.event_stream
         -- The idempotency key is checked before an event is queued: an event that was decided once is not delivered
         -- again when it is read again. An event with a number drawn after the previous tick, on a domain with one
         -- worker, cannot have been decided before. All other events are looked up one by one (offset 0), because a join
         -- would be planned with the size of the table at the beginning of the session.
         where k.event_seq > p_cursor.fresh_seq and not p_routes.shared
            or not exists (select from public.iu_route_attempt a
                            where a.idempotency_key = public.fn_iu_idempotency_key(r.route_code, k.id) offset 0)
           and not exists (select from public.iu_route_delivery d
                            where d.event_ref = k.id and d.route_code || '' = r.route_code offset 0)
         order by k.n, r.route_code
        returning id, route_code, event_ref, route_count, traceparent)
    select count(*), max(q.id), jsonb_agg(q) filter (where p_routes.queues ->> q.route_code is not null)
      into v_count, v_last_id, v_paused
      from queued q;
    p_result.queued := p_result.queued + v_count;
    if v_last_id < p_result.queued_id then
        -- The sequence of ids was set back, or the database was moved without it: waiting rows may have higher ids.
        select max(d.id) into v_last_id from public.iu_route_delivery d;
    end if;
    p_result.queued_id := coalesce(v_last_id, p_result.queued_id);
    if v_paused is not null then
        insert into public.iu_route_attempt
            (event_ref, route_kind, route_code, status, decision, delivered,
             idempotency_key, attempt_no, route_count, traceparent)
        select q.event_ref, 'outbound', q.route_code, 'pending', p_routes.queues ->> q.route_code, false,
               public.fn_iu_idempotency_key(q.route_code, q.event_ref), 1, q.route_count, q.traceparent
          from jsonb_to_recordset(v_paused) q(route_code text, event_ref uuid, route_count smallint, traceparent text)
        on conflict (idempotency_key, attempt_no) do nothing;
        get diagnostics v_count = row_count;
        p_result.attempts := p_result.attempts + v_count;
    end if;
    return p_result;
end
$$;
comment on function public.fn_iu_batch_enqueue(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, public.iu_batch_result) is
    'Queues a delivery for each event of a page and each live route whose target is outside the database.';

-- SQL functions ------------------------------------------------------------------------------------------

-- Each call has a savepoint, so a target that fails does not undo the work of the others.
create or replace function public.fn_iu_batch_call(
    p_cursor public.iu_route_worker_cursor, p_page public.iu_batch_page, p_routes public.iu_batch_routes,
    p_result public.iu_batch_result, p_given_up boolean)
returns public.iu_batch_result
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set max_parallel_workers_per_gather = 0
set jit = off
as $$
declare
    v_call     record;
    v_event    jsonb;
    v_decision text;
    v_count    bigint;
    v_state    text;
    v_message  text;
begin
    for v_call in
        select k.id, r.route_code
          from unnest(p_page.ids, p_page.types, p_page.streams) with ordinality k(id, event_type, event_stream, n)
          join unnest(p_routes.routes) r
            on r.event_domain = p_cursor.event_domain and r.event_type = k.event_type
           and r.event_stream = k.event_stream and r.enabled and not r.dry_run
           and not p_routes.queues ? r.route_code
         where not exists (select from public.iu_route_attempt a
                            where a.idempotency_key = public.fn_iu_idempotency_key(r.route_code, k.id) offset 0)
           and (p_given_up and coalesce(p_cursor.failed_route, r.route_code) = r.route_code) is not true
         order by k.n, r.route_code
    loop
        begin
            select to_jsonb(o) into v_event from public.event_outbox o where o.id = v_call.id;
            v_decision := public.fn_iu_route_dispatch(v_call.route_code, v_call.id, v_event);
            insert into public.iu_route_attempt
                (event_ref, route_kind, route_code, status, decision, delivered,
                 idempotency_key, attempt_no, route_count, traceparent)
            values (v_call.id, 'outbound', v_call.route_code,
                    public.fn_iu_decision_status(v_decision), v_decision, v_decision = 'delivered',
                    public.fn_iu_idempotency_key(v_call.route_code, v_call.id), 1,
                    coalesce((p_routes.counts ->> v_call.route_code)::smallint, 1),
                    public.fn_iu_trace_context(v_event ->> 'traceparent'))
            on conflict (idempotency_key, attempt_no) do nothing;
            get diagnostics v_count = row_count;
            p_result.attempts := p_result.attempts + v_count;
            p_result.skipped := p_result.skipped + case v_decision when 'route_disabled' then v_count else 0 end;
            p_result.delivered := p_result.delivered + case v_decision when 'delivered' then v_count else 0 end;
        exception when others or query_canceled or assert_failure then
            get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
            if public.fn_iu_error_of_system(v_state) then
                -- This error fails the batch. The caller learns the event and the route from it, and reports them
                -- (functions/batch_failure).
                raise exception using errcode = v_state, message = v_message, schema = 'public',
                      table = 'iu_outbound_route', column = v_call.route_code, constraint = v_call.id::text;
            end if;
            p_result.failed_ids := p_result.failed_ids || v_call.id;
            p_result.failed_routes := p_result.failed_routes || v_call.route_code;
            p_result.failed_whys := p_result.failed_whys || (v_state || ': ' || v_message);
        end;
    end loop;
    return p_result;
end
$$;
comment on function public.fn_iu_batch_call(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, public.iu_batch_result, boolean) is
    'Delivers the events of a page by the live routes whose events are not queued, one by one, and writes the attempts. '
    'Leaves out the routes of an event that is given up.';

-- Dead letters -------------------------------------------------------------------------------------------

create or replace function public.fn_iu_batch_give_up(
    p_cursor public.iu_route_worker_cursor, p_page public.iu_batch_page, p_routes public.iu_batch_routes,
    p_result public.iu_batch_result)
returns public.iu_batch_result
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set max_parallel_workers_per_gather = 0
set jit = off
as $$
begin
    select array_agg(f.route_code), array_agg(p_cursor.failed_event), array_agg('the batch failed: ' || p_cursor.failed_why)
      into p_result.failed_routes, p_result.failed_ids, p_result.failed_whys
      from (select coalesce(r.route_code, '(none)') as route_code
              from (select 1) one
              left join unnest(p_routes.routes) r
                on r.event_type = p_page.types[1] and r.event_stream = p_page.streams[1] and r.enabled) f
     where coalesce(p_cursor.failed_route, f.route_code) = f.route_code
       and not exists (select from public.iu_route_attempt a
                        where a.idempotency_key = public.fn_iu_idempotency_key(f.route_code, p_cursor.failed_event) offset 0);
    return p_result;
end
$$;
comment on function public.fn_iu_batch_give_up(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, public.iu_batch_result) is
    'Adds the first event of a page to the failures, because the batch failed each time that it was alone: on the route '
    'that the error named, otherwise on all its routes.';

create or replace function public.fn_iu_batch_dead_letters(
    p_cursor public.iu_route_worker_cursor, p_page public.iu_batch_page, p_routes public.iu_batch_routes,
    p_result public.iu_batch_result, p_given_up boolean)
returns public.iu_batch_result
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set max_parallel_workers_per_gather = 0
set jit = off
as $$
declare
    v_failure record;
    v_count   bigint;
    v_state   text;
    v_message text;
begin
    for v_failure in
        select f.id, f.route_code, f.why, public.fn_iu_idempotency_key(f.route_code, f.id) as key, 1 as attempt_no,
               case when p_given_up and coalesce(p_cursor.failed_route, f.route_code) = f.route_code
                    then 'batch_failed' else 'worker_process_error' end as code
          from unnest(p_result.failed_ids, p_result.failed_routes, p_result.failed_whys)
               with ordinality f(id, route_code, why, n)
         order by f.n
    loop
        -- If the dead letter exists already, it is locked before the attempt is written: the lock order of
        -- functions/dead_letters.
        perform from public.iu_route_dead_letter d where d.idempotency_key = v_failure.key for update;
        begin
            -- If even writing the attempt ends the server process, it is given up after 10 more failures.
            if p_given_up and p_cursor.failures >= 15 and p_cursor.failed_why !~ 'SQLSTATE' then
                raise exception 'writing it fails the batch' using errcode = 'raise_exception';
            end if;
            insert into public.iu_route_attempt
                (event_ref, route_kind, route_code, status, decision, delivered, failure_code,
                 idempotency_key, attempt_no, route_count, traceparent)
            values (v_failure.id, 'outbound', v_failure.route_code, 'failed', 'dead_letter', false, v_failure.code,
                    v_failure.key, 1, coalesce((p_routes.counts ->> v_failure.route_code)::smallint, 1),
                    p_page.contexts[array_position(p_page.ids, v_failure.id)])
            on conflict (idempotency_key, attempt_no) do nothing;
            get diagnostics v_count = row_count;
            p_result.attempts := p_result.attempts + v_count;
        exception when others or query_canceled or assert_failure then
            -- Even the failed attempt cannot be written. The dead letter below then holds the complete information.
            get stacked diagnostics v_state = returned_sqlstate, v_message = message_text;
            if not public.fn_iu_error_of_event(v_state) and (p_given_up and v_state ~ '^(40|55|57014|XX)') is not true then
                raise;
            end if;
            v_failure.why := v_failure.why || '; audit: ' || v_message;
            v_failure.attempt_no := 0;
        end;
        insert into public.iu_route_dead_letter
            (worker_name, event_ref, route_code, idempotency_key, attempt_no, event_snapshot,
             failure_code, failure_detail, created_at)
        select p_cursor.worker_name, o.id, v_failure.route_code, v_failure.key, v_failure.attempt_no,
               public.fn_iu_event_snapshot(o.id), v_failure.code, left(v_failure.why, 10000),
               -- Replays go by time: the dead letters of one batch keep the order of their events.
               now() + p_result.dead * interval '1 microsecond'
          from public.event_outbox o
         where o.id = v_failure.id
        on conflict (idempotency_key) do update
           set resolved_at = null, resolution = null, failure_code = excluded.failure_code,
               failure_detail = excluded.failure_detail, event_snapshot = excluded.event_snapshot;
        p_result.dead := p_result.dead + 1;
    end loop;
    p_result.failed_ids := null;
    p_result.failed_routes := null;
    p_result.failed_whys := null;
    return p_result;
end
$$;
comment on function public.fn_iu_batch_dead_letters(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, public.iu_batch_result, boolean) is
    'Writes a failed attempt and a dead letter with a snapshot of the event for each failure, and empties the list of '
    'failures.';

-- Advance ------------------------------------------------------------------------------------------------

create or replace function public.fn_iu_batch_advance(
    p_cursor public.iu_route_worker_cursor, p_page public.iu_batch_page, p_own_xid xid8)
returns public.iu_route_worker_cursor
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_created timestamptz;
begin
    if p_page.size > 0 then
        -- created_at is set by the producer: infinity or a year far in the future would never be replaced as the latest
        -- time.
        v_created := greatest('epoch', least(p_page.created[p_page.size], clock_timestamp()));
        if p_cursor.last_created_at is null
           or (v_created, p_page.ids[p_page.size]) > (p_cursor.last_created_at, p_cursor.last_event_id) then
            p_cursor.last_created_at := v_created;
            p_cursor.last_event_id := p_page.ids[p_page.size];
        end if;
    end if;
    if p_own_xid is not null then
        if p_page.size > 0 then
            p_cursor.own_xid := p_own_xid;
            p_cursor.own_seq := p_page.seqs[p_page.size];
        end if;
    elsif p_page.is_full then
        p_cursor.pos_seq := p_page.seqs[p_page.size];
        p_cursor.pos_id := p_page.ids[p_page.size];
    else
        -- The tick is consumed, and with it the remembered own events that it covers.
        p_cursor.prev := p_cursor.tick;
        p_cursor.tick := null;
        p_cursor.tick_floor := null;
        p_cursor.pos_seq := null;
        p_cursor.pos_id := null;
        if pg_visible_in_snapshot(p_cursor.own_xid, p_cursor.prev) then
            p_cursor.own_xid := null;
            p_cursor.own_seq := null;
        end if;
    end if;
    return p_cursor;
end
$$;
comment on function public.fn_iu_batch_advance(public.iu_route_worker_cursor, public.iu_batch_page, xid8) is
    'The cursor after a page: within its tick if the page was full, otherwise after the tick. After a page of events of '
    'the batch''s own transaction (p_own_xid), only these are remembered.';

create or replace function public.fn_iu_batch_finish(
    p_cursor public.iu_route_worker_cursor, p_result public.iu_batch_result, p_batch_limit integer, p_more boolean,
    p_past_failure boolean)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_answer jsonb;
begin
    if p_cursor.failures > 0
       and (p_past_failure
            or p_cursor.failed_event is null and (p_result.seen >= p_cursor.failed_events) is not false) then
        p_cursor.failures := 0;
        p_cursor.failed_events := null;
        p_cursor.failed_event := null;
        p_cursor.failed_route := null;
    end if;
    -- The page size is also limited by time: when a batch comes near its deadline, the next page is halved.
    if clock_timestamp() > statement_timestamp() + interval '10 seconds' then
        p_cursor.page_limit := greatest(1, p_result.seen / 2);
    elsif p_cursor.page_limit <= p_result.seen and clock_timestamp() < statement_timestamp() + interval '2 seconds' then
        p_cursor.page_limit := case when p_cursor.page_limit < p_batch_limit / 2 then p_cursor.page_limit * 2 end;
    end if;

    v_answer := jsonb_build_object(
        'status', 'ran', 'worker_name', p_cursor.worker_name, 'seen', p_result.seen,
        'attempts_written', p_result.attempts, 'skipped', p_result.skipped, 'delivered', p_result.delivered,
        'queued', p_result.queued, 'dead_lettered', p_result.dead, 'more', p_more,
        'cursor_event_id', p_cursor.last_event_id, 'cursor_created_at', p_cursor.last_created_at,
        'lineage', p_cursor.lineage, 'xact_id', pg_current_xact_id()::text);

    update public.iu_route_worker_cursor w
       set last_created_at = p_cursor.last_created_at, last_event_id = p_cursor.last_event_id,
           prev = p_cursor.prev, tick = p_cursor.tick, tick_floor = p_cursor.tick_floor,
           pos_seq = p_cursor.pos_seq, pos_id = p_cursor.pos_id,
           own_xid = p_cursor.own_xid, own_seq = p_cursor.own_seq, hi_seq = greatest(w.hi_seq, p_cursor.hi_seq),
           fresh_seq = p_cursor.fresh_seq, queued_id = p_result.queued_id, page_limit = p_cursor.page_limit,
           failures = p_cursor.failures, failed_events = p_cursor.failed_events - p_result.seen,
           failed_event = p_cursor.failed_event, failed_route = p_cursor.failed_route,
           total_seen = w.total_seen + p_result.seen, total_attempts = w.total_attempts + p_result.attempts,
           total_skipped = w.total_skipped + p_result.skipped,
           total_dead_lettered = w.total_dead_lettered + p_result.dead,
           last_run_at = clock_timestamp(), last_run_summary = v_answer
     where w.worker_name = p_cursor.worker_name;
    return v_answer;
end
$$;
comment on function public.fn_iu_batch_finish(
    public.iu_route_worker_cursor, public.iu_batch_result, integer, boolean, boolean) is
    'Writes the cursor and the totals, and answers the counts of the batch. Forgets an earlier failure once the batch is '
    'past it, and adapts the size of the next page to the duration.';
