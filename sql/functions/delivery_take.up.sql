-- The take: reads the deliveries that are attempted next.
--
-- Payloads are converted one by one. A payload that is too large is neither converted as a whole nor sent to the
-- consumer (functions/event_snapshot).
--
-- kind: repeatable
-- needs: 008, 012, functions/delivery_policy, functions/delivery_switches, functions/event_snapshot, functions/idempotency_key
-- locks: nothing that other sessions use

create or replace function public.fn_iu_event_payload(p_payload jsonb, p_limit bigint)
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

-- The first delivery of a subject is the first row with a key >= the subject's key in the order of
-- iu_route_delivery_subject_idx. The query is written in this way because no other index has that order. A session may
-- plan while the table is empty and all indexes cost the same; "the lowest id with this key" would then be searched in
-- the primary key, through all waiting rows.
--
-- The planner inlines this function into the queries that use it, because it is a single SQL statement without settings
-- of its own. So it costs nothing, and the queries have the plans that they would have with a copy of this text.
create or replace function public.fn_iu_delivery_first(p_route_code text, p_subject_key bigint)
returns table (id bigint, subject_key bigint, due_at timestamptz, worker_name text)
language sql
stable
begin atomic
    select d.id, d.subject_key, d.due_at, d.worker_name
      from public.iu_route_delivery d
     where d.route_code = p_route_code and d.subject_key >= p_subject_key
     order by d.subject_key, d.id
     limit 1;
end;
comment on function public.fn_iu_delivery_first(text, bigint) is
    'The first delivery of a subject. If the subject has no delivery: the first one of the next subject.';

-- Deliveries of a route that may go on: those whose subject was unblocked by the settlement of the delivery before them,
-- those that are due again, and those whose failure lies in the future because the clock was set back. due_at is null for
-- a delivery that was never attempted, and infinity for a replay that waits for its turn.
create or replace function public.fn_iu_delivery_due(
    p_worker_name text, p_route_code text, p_capacity integer, p_held_ids bigint[], p_unblocked_routes text[],
    p_unblocked_keys bigint[])
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
                  from unnest(p_unblocked_routes, p_unblocked_keys) u(code, key)
                 cross join lateral public.fn_iu_delivery_first(u.code, u.key) h
                 where u.code = p_route_code and h.subject_key = u.key and (h.due_at is null or h.due_at = 'infinity')
                   and h.worker_name = p_worker_name
                union all
                (select d.id
                   from public.iu_route_delivery d
                  where d.route_code = p_route_code and d.due_at <= v_now
                    and d.worker_name = p_worker_name and d.id <> all (p_held_ids)
                    and (d.subject_key is null
                         or d.id = (select h.id from public.fn_iu_delivery_first(d.route_code, d.subject_key) h))
                  order by d.due_at
                  limit p_capacity)
                union all
                -- failed_at lies in the future: the clock was set back, and without this branch the delivery would be
                -- due far too late.
                (select d.id
                   from public.iu_route_delivery d
                  where d.route_code = p_route_code and d.failed_at > v_now + interval '1 second'
                    and d.due_at > v_now and d.due_at < 'infinity' and d.worker_name = p_worker_name
                    and d.id <> all (p_held_ids)
                    and (d.subject_key is null
                         or d.id = (select h.id from public.fn_iu_delivery_first(d.route_code, d.subject_key) h))
                  order by d.failed_at
                  limit p_capacity)) q
         limit p_capacity);
end
$$;
comment on function public.fn_iu_delivery_due(text, text, integer, bigint[], text[], bigint[]) is
    'Part of fn_iu_delivery_take; uses its planner settings. Ids of deliveries that are due again, or that were '
    'unblocked by the settlement of the delivery before them.';

-- Deliveries that were never attempted, beyond a position and up to the last one that a batch has queued. The batches
-- of a worker commit one after the other, so all deliveries up to that one are visible.
--
-- On an ordered route only the first delivery of each subject is returned; the position passes the others. If nearly
-- all rows that were looked at wait for an earlier delivery, the position passes all queued deliveries: a million
-- deliveries of one subject must not delay the next event of another subject. The deliveries that the position passed
-- unread are left to the sweep (functions/delivery_sweep).
create or replace function public.fn_iu_delivery_new(
    p_worker_name text, p_route_code text, p_ordered boolean, p_capacity integer, p_position bigint, p_queued_id bigint,
    out ids bigint[], out new_position bigint, out passed bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_most   constant integer := 2 * p_capacity + 100;
    v_last   bigint;
    v_looked bigint;
begin
    if p_ordered then
        select max(p.id), count(*), array_agg(p.id order by p.id) filter (where p.first)
          into v_last, v_looked, ids
          from (select d.id,
                       d.due_at is null
                       and (d.subject_key is null
                            or d.id = (select h.id from public.fn_iu_delivery_first(d.route_code, d.subject_key) h)) as first
                  from public.iu_route_delivery d
                 where d.route_code = p_route_code and d.id > p_position and d.id <= p_queued_id
                   and d.worker_name = p_worker_name
                 order by d.id
                 limit v_most) p;
        if v_looked = v_most and coalesce(cardinality(ids), 0) < p_capacity then
            passed := v_last;
        end if;
    else
        ids := array(select d.id
                       from public.iu_route_delivery d
                      where d.route_code = p_route_code and d.id > p_position and d.id <= p_queued_id
                        and d.due_at is null and d.worker_name = p_worker_name
                      order by d.id
                      limit p_capacity);
    end if;
    new_position := case when cardinality(ids) >= p_capacity then ids[p_capacity] else p_queued_id end;
    ids := coalesce(ids[1:p_capacity], '{}');
end
$$;
comment on function public.fn_iu_delivery_new(text, text, boolean, integer, bigint, bigint) is
    'Part of fn_iu_delivery_take; uses its planner settings. Ids of deliveries that were never attempted, and the new '
    'position. passed: the position has passed the deliveries beyond this id unread. Null: it has passed none unread.';

-- The newest delivery that was never attempted, beyond a position; on an ordered route, the newest that is the first of
-- its subject. At most a hundred rows are read.
create or replace function public.fn_iu_delivery_newest(
    p_worker_name text, p_route_code text, p_ordered boolean, p_position bigint)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    return array(
        select q.id
          from (select d.*
                  from public.iu_route_delivery d
                 where d.route_code = p_route_code and d.id > p_position
                 order by d.id desc
                 limit 100) q
         where q.due_at is null and q.worker_name = p_worker_name
           and (not p_ordered or q.subject_key is null
                or q.id = (select h.id from public.fn_iu_delivery_first(q.route_code, q.subject_key) h))
         order by q.id desc
         limit 1);
end
$$;
comment on function public.fn_iu_delivery_newest(text, text, boolean, bigint) is
    'Part of fn_iu_delivery_take; uses its planner settings. The id of the newest delivery that was never attempted, '
    'or an empty array.';

-- The deliveries of a route that are attempted next. Those that may go on come before those that were never attempted.
-- The trial deliveries of a paused route are in turns the newest delivery, the oldest one that was never attempted, and
-- one that has failed.
create or replace function public.fn_iu_delivery_choose(
    p_worker_name text, p_route_code text, p_ordered boolean, p_trials integer, p_capacity integer, p_position bigint,
    p_queued_id bigint, p_held_ids bigint[], p_unblocked_routes text[], p_unblocked_keys bigint[],
    out ids bigint[], out new_position bigint, out passed bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    -- 0: the newest, 1: the oldest, 2: one that has failed. Null: this is no trial delivery.
    v_turn  constant integer := p_trials % 3;
    v_until bigint := p_queued_id;
    v_new   record;
begin
    ids := '{}';
    new_position := p_position;
    if v_turn = 0 then
        ids := public.fn_iu_delivery_newest(p_worker_name, p_route_code, p_ordered, p_position);
    elsif v_turn is distinct from 1 then
        ids := public.fn_iu_delivery_due(
            p_worker_name, p_route_code, p_capacity, p_held_ids,
            case when v_turn is null then p_unblocked_routes end, p_unblocked_keys);
    end if;
    if v_until is null then
        -- The cursor was created again and has queued nothing yet.
        select max(d.id) into v_until
          from public.iu_route_delivery d
         where d.route_code = p_route_code and d.replayed_by is null;
    end if;
    if cardinality(ids) < p_capacity and p_position < v_until then
        select n.ids, n.new_position, n.passed into v_new
          from public.fn_iu_delivery_new(p_worker_name, p_route_code, p_ordered, p_capacity - cardinality(ids),
                                         p_position, v_until) n;
        ids := ids || v_new.ids;
        new_position := v_new.new_position;
        passed := v_new.passed;
    end if;
    if v_turn is not null and cardinality(ids) = 0 then
        ids := public.fn_iu_delivery_due(
            p_worker_name, p_route_code, p_capacity, p_held_ids, p_unblocked_routes, p_unblocked_keys);
    end if;
end
$$;
comment on function public.fn_iu_delivery_choose(
    text, text, boolean, integer, integer, bigint, bigint, bigint[], text[], bigint[]) is
    'Part of fn_iu_delivery_take; uses its planner settings. Ids of the deliveries of a route that are attempted next, '
    'and the new position of the route, as fn_iu_delivery_new answers it. p_trials: the failed trial deliveries of a '
    'paused route; null: the route is not paused.';

create or replace function public.fn_iu_delivery_next_due(p_route_code text, p_held_ids bigint[])
returns timestamptz
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select d.due_at
              from public.iu_route_delivery d
             where d.route_code = p_route_code and d.due_at < 'infinity' and d.id <> all (p_held_ids)
               and (d.subject_key is null
                    or d.id = (select h.id from public.fn_iu_delivery_first(d.route_code, d.subject_key) h))
             order by d.due_at
             limit 1);
end
$$;
comment on function public.fn_iu_delivery_next_due(text, bigint[]) is
    'Part of fn_iu_delivery_take; uses its planner settings. Time at which the next delivery of a route is due again, '
    'without those that the caller holds. Null: none is.';

-- The deliveries with the given ids, in the order of their ids, each with its event, until the payloads have used up
-- p_bytes. Payloads are converted one by one, and the answer ends at the first one after the budget is used up.
--
-- A delivery that cannot be given to a target has a problem: event_missing, payload_too_large or event_out_of_range (a
-- time that Python cannot represent).
--
-- fn_iu_delivery_hand_over reads the same attributes of the same tables. The list of attributes stands in both, because
-- a view would read the events with the rights of its owner, and because a function that takes a whole event would first
-- read its payload into memory, however large it is.
create or replace function public.fn_iu_delivery_rows(
    p_route public.iu_outbound_route, p_ids bigint[], p_bytes bigint, p_payload_max bigint)
returns setof public.iu_deliverable
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    -- One index scan for all ids. PostgreSQL 16 and older may filter all deliveries of the route by these ids instead,
    -- if they plan while the table is empty; there the ids are looked up one by one.
    v_one_scan constant boolean := current_setting('server_version_num')::integer >= 170000;
    r          public.iu_deliverable;
    v_payload  jsonb;
    v_found    boolean;
    v_left     bigint := p_bytes;
begin
    r.route_code := p_route.route_code;
    for r.delivery_id, r.attempt_no, r.subject_key, r.alone, r.event_ref, r.event_domain, r.event_type, r.event_stream,
        r.subject, r.subject_table, r.source_system, r.actor_ref, r.correlation_id, r.occurred_at, r.created_at,
        r.traceparent, v_payload, v_found in
        select d.id, d.attempt_no, d.subject_key, d.alone, d.event_ref, coalesce(o.event_domain, p_route.event_domain),
               coalesce(o.event_type, p_route.event_type), coalesce(o.event_stream, p_route.event_stream),
               coalesce(o.event_subject_ref::text, o.canonical_address), o.event_subject_table, o.source_system,
               o.actor_ref, o.correlation_id::text, o.occurred_at, o.created_at, d.traceparent, o.safe_payload,
               o.id is not null
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
                  and l.idempotency_key = public.fn_iu_idempotency_key(d.route_code, d.event_ref)
                  and not l.event_snapshot ? 'too_large'
               limit 1) o on true
         order by d.id
    loop
        exit when v_left <= 0;
        r.problem := case when not v_found then 'event_missing' end;
        if r.occurred_at not between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00' then
            r.occurred_at := null;
            r.problem := 'event_out_of_range';
        end if;
        if r.created_at not between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00' then
            r.created_at := null;
            r.problem := 'event_out_of_range';
        end if;
        if v_payload is null then
            r.payload := case when v_found then 'null' end;
        elsif pg_column_size(v_payload) < 2000 and pg_column_compression(v_payload) is null then
            r.payload := v_payload::text;
        else
            r.payload := public.fn_iu_event_payload(v_payload, p_payload_max);
            r.problem := coalesce(r.problem, case when r.payload is null then 'payload_too_large' end);
        end if;
        v_left := v_left - coalesce(octet_length(r.payload), 0) - 500;
        return next r;
    end loop;
end
$$;
comment on function public.fn_iu_delivery_rows(public.iu_outbound_route, bigint[], bigint, bigint) is
    'Part of fn_iu_delivery_take; uses its planner settings. Deliveries of a route with their events, within a budget '
    'of p_bytes bytes of payload.';

-- For each route the caller names its free capacity in deliveries (p_capacities), the id up to which it has taken
-- deliveries that were never attempted (p_positions), and its free capacity in bytes of payload (p_bytes). p_held_ids are
-- the deliveries that the caller holds: those that were attempted before, and trial deliveries. p_unblocked_routes and
-- p_unblocked_keys name the subjects whose first delivery was settled.
--
-- The answer has a row for each delivery, and one for each route with the reason why it is paused. Nothing is written,
-- except that a circuit breaker becomes half-open.
create or replace function public.fn_iu_delivery_take(
    p_worker_name text, p_routes text[], p_capacities integer[], p_positions bigint[], p_bytes bigint[],
    p_held_ids bigint[], p_unblocked_routes text[], p_unblocked_keys bigint[], p_payload_max bigint)
returns setof public.iu_deliverable
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
declare
    v_route    record;
    r          public.iu_outbound_route;
    b          public.iu_delivery_breaker;
    v_policy   jsonb;
    v_paused   text;
    v_asked    integer;
    v_capacity integer;
    v_trial    boolean;
    v_next     record;
    v_ids      bigint[];
    v_position bigint;
    v_passed   bigint;
    v_given    bigint;
    v_now      timestamptz;
    v_state    public.iu_deliverable;
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
        v_paused := public.fn_iu_delivery_paused_by(r.route_code, r.enabled, r.dry_run, b.stopped_at, b.opened_at);
        v_asked := array_position(p_routes, r.route_code);
        v_capacity := p_capacities[v_asked];
        v_position := p_positions[v_asked];
        v_ids := '{}';
        v_passed := null;
        v_given := 0;
        v_trial := v_paused in ('breaker_open', 'dead_letter_budget') and v_capacity > 0
                   and (v_now >= b.trial_at or b.opened_at > v_now + interval '1 second'
                        -- The caller does not have the trial delivery that is in flight: it was given to a consumer
                        -- that has ended, or in an answer that came too late.
                        or b.trial_id is not null and b.trial_id <> all (p_held_ids));
        v_capacity := case when v_paused is null then v_capacity when v_trial then 1 else 0 end;

        if v_capacity > 0 then
            select c.ids, c.new_position, c.passed into v_next
              from public.fn_iu_delivery_choose(
                       p_worker_name, r.route_code, v_policy ->> 'order' = 'subject', case when v_trial then b.trials end,
                       v_capacity, v_position, v_route.queued_id, p_held_ids, p_unblocked_routes, p_unblocked_keys) c;
            v_ids := array(select i.id from unnest(v_next.ids) i(id) group by i.id order by i.id);
            v_position := v_next.new_position;
            v_passed := v_next.passed;
            if v_trial and cardinality(v_ids) > 0 then
                b.trial_id := v_ids[1];
                update public.iu_delivery_breaker x
                   set trial_id = b.trial_id, opened_at = least(x.opened_at, clock_timestamp()),
                       trial_at = clock_timestamp() + ((v_policy ->> 'deadline')::double precision + 5) * interval '1 second'
                 where x.route_code = r.route_code
                   -- A settlement may have closed the breaker since this query began.
                   and x.opened_at is not null;
            end if;
            return query select d.* from public.fn_iu_delivery_rows(r, v_ids, p_bytes[v_asked], p_payload_max) d;
            get diagnostics v_given = row_count;
            -- The position must not pass a delivery that was kept back by the budget of bytes.
            if v_given < cardinality(v_ids) then
                v_position := least(v_position, v_ids[v_given + 1] - 1);
            end if;
        end if;

        v_state.route_code := r.route_code;
        v_state.route := jsonb_build_object(
            'kind', r.target_kind, 'ref', r.target_ref, 'policy', v_policy, 'paused_by', v_paused,
            'position', v_position, 'passed', v_passed, 'kept_back', v_given < cardinality(v_ids),
            'due_in', extract(epoch from
                case when v_paused is null then public.fn_iu_delivery_next_due(r.route_code, p_held_ids || v_ids)
                     when v_paused in ('breaker_open', 'dead_letter_budget') then b.trial_at end - clock_timestamp()),
            'why', coalesce(b.why, ''), 'trial_id', b.trial_id, 'took', extract(epoch from v_now - statement_timestamp()));
        return next v_state;
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
-- It is one query, although fn_iu_delivery_new and fn_iu_delivery_rows contain its parts: each further statement would
-- delay an event that comes alone.
--
-- Strict: a batch that has queued nothing passes null as the worker, and nothing is read.
create or replace function public.fn_iu_delivery_hand_over(
    p_worker_name text, p_routes text[], p_capacities integer[], p_positions bigint[])
returns setof public.iu_deliverable
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
declare
    r         public.iu_deliverable;
    v_payload jsonb;
    v_bytes   bigint := 0;
begin
    r.alone := false;
    for r.route_code, r.delivery_id, r.attempt_no, r.subject_key, r.event_ref, r.event_domain, r.event_type,
        r.event_stream, r.subject, r.subject_table, r.source_system, r.actor_ref, r.correlation_id, r.occurred_at,
        r.created_at, r.traceparent, v_payload in
        select q.route_code, d.id, d.attempt_no, d.subject_key, d.event_ref, coalesce(o.event_domain, q.event_domain),
               coalesce(o.event_type, q.event_type), coalesce(o.event_stream, q.event_stream),
               coalesce(o.event_subject_ref::text, o.canonical_address), o.event_subject_table, o.source_system,
               o.actor_ref, o.correlation_id::text, o.occurred_at, o.created_at, d.traceparent, o.safe_payload
          from unnest(p_routes, p_capacities, p_positions) w(route_code, capacity, position)
         cross join lateral (
               select x.route_code, x.event_domain, x.event_type, x.event_stream,
                      x.delivery_policy ->> 'order' = 'subject' as ordered,
                      public.fn_iu_delivery_paused_by(x.route_code, x.enabled, x.dry_run, b.stopped_at, b.opened_at)
                          as paused_by
                 from public.iu_outbound_route x
                 left join public.iu_delivery_breaker b on b.route_code = x.route_code
                where x.route_code = w.route_code and x.target_kind in ('workflow', 'external_endpoint')
                limit 1) q
         cross join lateral (
               select p.*
                 from (select x.*
                         from public.iu_route_delivery x
                        where q.paused_by is null and x.route_code = w.route_code and x.id > w.position
                          and x.due_at is null and x.worker_name = p_worker_name
                        order by x.id
                        limit 2 * w.capacity + 100) p
                where q.ordered is not true or p.subject_key is null
                   or p.id = (select h.id from public.fn_iu_delivery_first(p.route_code, p.subject_key) h)
                order by p.id
                limit w.capacity) d
          left join lateral (select x.* from public.event_outbox x where x.id = d.event_ref limit 1) o on true
    loop
        v_bytes := v_bytes + coalesce(pg_column_size(v_payload), 0);
        if v_bytes < 4000 and pg_column_compression(v_payload) is null
           and r.occurred_at between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00'
           and r.created_at between '0001-01-02 00:00:00+00' and '9999-12-30 00:00:00+00' then
            r.problem := null;
            r.payload := coalesce(v_payload::text, 'null');
        else
            r.problem := 'not_handed_over';
            r.occurred_at := null;
            r.created_at := null;
            r.payload := null;
        end if;
        return next r;
    end loop;
end
$$;
comment on function public.fn_iu_delivery_hand_over(text, text[], integer[], bigint[]) is
    'Deliveries of the given routes that were never attempted, if the routes are not paused. Writes nothing.';
