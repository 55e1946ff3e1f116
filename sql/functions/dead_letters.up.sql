-- Dead-letter replay in bulk, resolving many dead letters, and cancelling many deliveries. The replay of one dead letter
-- is fn_iu_route_dead_letter_replay (009).
--
-- Each function handles one bounded part in its own transaction and answers where that part ended; the caller continues
-- from there. So progress can be shown, and an interruption leaves the rest unchanged. No part begins another row after
-- one second; only a slow SQL function of a route makes a part longer.
--
-- Lock order, for every function that locks rows of more than one of these tables (docs/why/delivery.md):
--
--   iu_delivery_lease -> iu_route_worker_cursor -> iu_outbound_route -> iu_delivery_breaker
--     -> iu_route_delivery (by id) -> iu_route_dead_letter -> iu_route_attempt
--
-- A settlement locks the lease first. A part that changes many deliveries, or many dead letters of queued routes, also
-- locks the lease, so it never runs at the same time as a settlement.
--
-- kind: repeatable
-- needs: 008, 011, 012, functions/delivery_switches, functions/event_snapshot, functions/trace_ids, functions/idempotency_key
-- calls: 009, functions/routing, functions/sql_targets, functions/wake
-- locks: nothing that other sessions use

-- Cancel -------------------------------------------------------------------------------------------------

-- Nothing is lost: each delivery becomes a dead letter that records the actor and the reason. Only deliveries of a
-- paused route can be cancelled, because an in-flight call cannot be undone.
create or replace function public.fn_iu_delivery_cancel(
    p_route_code text, p_event_ref uuid, p_why text, p_actor text default session_user,
    p_after bigint default 0, p_until bigint default null, p_limit integer default 1000)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_custom_plan
as $$
declare
    r       public.iu_outbound_route;
    v_held  text;
    v_ids   bigint[];
    v_count bigint;
begin
    if coalesce(btrim(p_why), '') = '' then
        raise exception 'cancelling deliveries needs a reason' using errcode = 'invalid_parameter_value',
            hint = 'It is kept in each dead letter.';
    end if;
    perform from public.iu_delivery_lease l order by l.worker_name for update;
    select x.* into r from public.iu_outbound_route x where x.route_code = p_route_code for share;
    if found then
        select public.fn_iu_delivery_paused_by(r.route_code, r.enabled, r.dry_run, b.stopped_at, b.opened_at) into v_held
          from (select) one
          left join public.iu_delivery_breaker b on b.route_code = r.route_code;
        if v_held is null
           and not exists (select from public.iu_delivery_unusable u where u.route_code = p_route_code) then
            raise exception 'route % delivers: nothing of it can be cancelled', p_route_code
                using errcode = 'object_not_in_prerequisite_state', hint = 'First: iu-listen route dry ' || p_route_code;
        end if;
    end if;

    -- Starts after the end of the previous part, so the rows that it deleted are not read again, however long vacuum is
    -- delayed.
    v_ids := array(select d.id
                     from public.iu_route_delivery d
                    where d.route_code = p_route_code and d.id > p_after and (p_until is null or d.id <= p_until)
                      and (p_event_ref is null or d.event_ref = p_event_ref)
                    order by d.id
                    limit p_limit
                      for update);
    with gone as (
        delete from public.iu_route_delivery d
         where d.route_code = p_route_code and d.id = any (v_ids)
        returning d.*, public.fn_iu_idempotency_key(d.route_code, d.event_ref) as key
    ), letters as (
        insert into public.iu_route_dead_letter
            (worker_name, event_ref, route_kind, route_code, idempotency_key, attempt_no, event_snapshot, failure_code,
             failure_detail, created_at)
        select g.worker_name, g.event_ref, g.route_kind, g.route_code, g.key, g.attempt_no,
               coalesce(public.fn_iu_event_snapshot(g.event_ref), jsonb_build_object('id', g.event_ref)),
               'cancelled', 'cancelled by ' || p_actor || ': ' || p_why,
               -- Replays go by time: the dead letters of one cancellation keep the order of their deliveries.
               now() + (row_number() over (order by g.id) - 1) * interval '1 microsecond'
          from gone g
         order by g.id
        on conflict (idempotency_key) do update
           set resolved_at = null, resolution = null, attempt_no = excluded.attempt_no,
               failure_code = excluded.failure_code, failure_detail = excluded.failure_detail
        returning attempt_no
    ), written as (
        -- The subquery makes every dead letter come before the first attempt.
        insert into public.iu_route_attempt
            (event_ref, route_kind, route_code, status, decision, delivered, failure_code, idempotency_key, attempt_no,
             route_count, traceparent, batch_xact_id)
        select g.event_ref, g.route_kind, g.route_code, 'failed', 'dead_letter', false, 'cancelled', g.key, g.attempt_no,
               g.route_count, g.traceparent, g.batch_xact_id
          from gone g
         where (select count(*) from letters) > 0
        on conflict (idempotency_key, attempt_no) do nothing
    )
    select count(*) into v_count from gone;
    return jsonb_build_object('cancelled', v_count, 'after', coalesce(v_ids[cardinality(v_ids)], p_after),
                              'more', cardinality(v_ids) = p_limit);
end
$$;
comment on function public.fn_iu_delivery_cancel(text, uuid, text, text, bigint, bigint, integer) is
    'Ends deliveries of a paused route, those of one event or the next p_limit after p_after: each becomes a dead '
    'letter. Answers the number, where the part ended, and whether there may be more.';

-- Selection ----------------------------------------------------------------------------------------------

-- The best plan depends on the filters that are given, so it is made for each call.
create or replace function public.fn_iu_dead_letters_open(
    p_route_code text, p_failure_code text, p_since timestamptz, p_event_ref uuid, p_subject text,
    p_until timestamptz, p_after_at timestamptz, p_after_id uuid, p_limit integer)
returns setof uuid
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_custom_plan
as $$
begin
    return query
    select d.id
      from public.iu_route_dead_letter d
     where d.resolved_at is null
       and (p_route_code is null or d.route_code = p_route_code)
       and (p_failure_code is null or d.failure_code = p_failure_code)
       and (p_since is null or d.created_at >= p_since)
       and (p_event_ref is null or d.event_ref = p_event_ref)
       and (p_subject is null or p_subject in (d.event_snapshot ->> 'event_subject_ref',
                                               d.event_snapshot ->> 'canonical_address'))
       and (p_until is null or d.created_at <= p_until)
       and (p_after_at is null or (d.created_at, d.id) > (p_after_at, p_after_id))
     order by d.created_at, d.id
     limit p_limit;
end
$$;
comment on function public.fn_iu_dead_letters_open(
    text, text, timestamptz, uuid, text, timestamptz, timestamptz, uuid, integer) is
    'Ids of open dead letters that pass the filters (null: any), oldest first, after (p_after_at, p_after_id) and up '
    'to p_until.';

-- Replay -------------------------------------------------------------------------------------------------

-- If the target of a route is called after the commit, its dead letters become deliveries, in one statement. Dead letters
-- of other routes are decided one by one by fn_iu_route_dead_letter_replay, until one second has passed.
create or replace function public.fn_iu_dead_letters_replay(
    p_route_code text, p_failure_code text, p_since timestamptz, p_event_ref uuid, p_subject text, p_actor text,
    p_until timestamptz, p_after_at timestamptz, p_after_id uuid, p_limit integer default 1000)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    r         public.iu_outbound_route;
    v_ids     uuid[];
    v_id      uuid;
    v_done    integer := 0;
    v_one     jsonb;
    v_answers jsonb := '{}';
    v_answer  text;
    v_count   integer;
begin
    if not public.fn_iu_core_routes_enabled() or not public.fn_iu_route_worker_enabled() then
        return jsonb_build_object('status', case when public.fn_iu_core_routes_enabled() then 'worker_gate_closed'
                                                 else 'master_gate_closed' end);
    end if;
    select x.* into r from public.iu_outbound_route x where x.route_code = p_route_code;
    if r.route_code is not null and public.fn_iu_delivery_queued_routes(array[r]) <> '{}' then
        perform from public.iu_delivery_lease l order by l.worker_name for update;
        v_ids := array(select d.id
                         from public.iu_route_dead_letter d
                        where d.resolved_at is null
                          and d.id in (select public.fn_iu_dead_letters_open(
                                                  p_route_code, p_failure_code, p_since, p_event_ref, p_subject,
                                                  p_until, p_after_at, p_after_id, p_limit))
                        order by d.created_at, d.id
                          for update);
        v_done := cardinality(v_ids);
        v_count := public.fn_iu_dead_letters_queue(v_ids, r.delivery_policy ->> 'order' = 'subject', p_actor);
        v_answers := jsonb_strip_nulls(jsonb_build_object(
            'queued', nullif(v_count, 0), 'already_queued', nullif(v_done - v_count, 0)));
    else
        v_ids := array(select public.fn_iu_dead_letters_open(
                                  p_route_code, p_failure_code, p_since, p_event_ref, p_subject,
                                  p_until, p_after_at, p_after_id, p_limit));
        foreach v_id in array v_ids loop
            v_one := public.fn_iu_route_dead_letter_replay(v_id, p_actor);
            v_done := v_done + 1;
            v_answer := concat_ws(' ', v_one ->> 'status', v_one ->> 'decision');
            v_answers := v_answers || jsonb_build_object(v_answer, coalesce((v_answers ->> v_answer)::integer, 0) + 1);
            exit when clock_timestamp() > statement_timestamp() + interval '1 second';
        end loop;
    end if;
    return jsonb_build_object(
        'status', 'ran', 'done', v_done, 'answers', v_answers, 'more', v_done > 0,
        'after_at', (select d.created_at from public.iu_route_dead_letter d where d.id = v_ids[v_done]),
        'after_id', v_ids[v_done]);
end
$$;
comment on function public.fn_iu_dead_letters_replay(
    text, text, timestamptz, uuid, text, text, timestamptz, timestamptz, uuid, integer) is
    'Replays the next dead letters of a route that pass the filters. Answers the number for each result, and where '
    'the part ended.';

-- The same decision as in a batch, for one event, from its snapshot. The caller handles errors.
create or replace function public.fn_iu_dead_letter_decide(
    p_dead_letter public.iu_route_dead_letter, p_route public.iu_outbound_route, p_attempt_no integer)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    d          public.iu_route_dead_letter := p_dead_letter;
    v_decision text;
begin
    if p_route.route_code is null then
        v_decision := 'no_route';
    elsif not p_route.enabled then
        v_decision := 'route_disabled';
    elsif p_route.dry_run then
        v_decision := 'dry_run';
    else
        -- A snapshot that is too large lacks the payload, which is read from the outbox.
        if d.event_snapshot ? 'too_large' then
            select to_jsonb(o) into d.event_snapshot from public.event_outbox o where o.id = d.event_ref;
            if not found then
                raise exception 'event % is too large for its dead letter, and is not in the outbox any more', d.event_ref
                    using errcode = 'raise_exception';
            end if;
        end if;
        v_decision := public.fn_iu_route_dispatch(d.route_code, d.event_ref, d.event_snapshot);
    end if;
    insert into public.iu_route_attempt
        (event_ref, route_kind, route_code, status, decision, delivered, idempotency_key, attempt_no, traceparent)
    values (d.event_ref, d.route_kind, d.route_code, public.fn_iu_decision_status(v_decision), v_decision,
            v_decision = 'delivered', d.idempotency_key, p_attempt_no,
            public.fn_iu_trace_context(d.event_snapshot ->> 'traceparent'));
    return v_decision;
end
$$;
comment on function public.fn_iu_dead_letter_decide(public.iu_route_dead_letter, public.iu_outbound_route, integer) is
    'Decides the event of a dead letter again by its route (null: the route does not exist any more), writes the attempt, '
    'and answers the decision. An error of the target is raised.';

create or replace function public.fn_iu_dead_letters_queue(p_ids uuid[], p_ordered boolean, p_actor text)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_custom_plan
as $$
declare
    v_count integer;
begin
    with letters as materialized (
        select d.*, case when p_ordered then hashtextextended(coalesce(d.event_snapshot ->> 'event_subject_ref',
                                                                       d.event_snapshot ->> 'canonical_address'), 0)
                    end as subject_key
          from public.iu_route_dead_letter d
         where d.id = any (p_ids)
           and not exists (select from public.iu_route_delivery x
                            where x.event_ref = d.event_ref and x.route_code || '' = d.route_code)
    ), turns as (
        -- One dead letter of each subject is due, unless a delivery of that subject waits already.
        select d.*, case when lag(d.subject_key) over (partition by d.route_code, d.subject_key order by d.created_at, d.id)
                              is not null
                           or d.subject_key = (select x.subject_key
                                                 from public.iu_route_delivery x
                                                where x.route_code = d.route_code and x.subject_key >= d.subject_key
                                                order by x.subject_key, x.id
                                                limit 1)
                         then 'infinity' else now() end as due_at
          from letters d
    ), queued as (
        insert into public.iu_route_delivery
            (worker_name, route_code, event_ref, subject_key, attempt_no, due_at, failed_at, replayed_by, traceparent)
        select d.worker_name, d.route_code, d.event_ref, d.subject_key,
               coalesce((select max(a.attempt_no) from public.iu_route_attempt a
                          where a.idempotency_key = d.idempotency_key), 0) + 1,
               d.due_at, case when d.due_at < 'infinity' then d.due_at end, p_actor,
               public.fn_iu_trace_context(d.event_snapshot ->> 'traceparent')
          from turns d
         order by d.created_at, d.id
            on conflict do nothing
        returning event_ref, route_code
    ), counted as (
        update public.iu_route_dead_letter d
           set replay_count = d.replay_count + 1, last_replay_at = clock_timestamp()
          from letters l
          join queued q on q.event_ref = l.event_ref and q.route_code = l.route_code
         where d.id = l.id
    )
    select count(*) into v_count from queued;
    if v_count > 0 then
        perform public.fn_iu_ring_consumers();
    end if;
    return v_count;
end
$$;
comment on function public.fn_iu_dead_letters_queue(uuid[], boolean, text) is
    'Queues dead letters, which the caller has locked, for delivery, except those with a pending delivery. '
    'Answers the number.';

-- Resolve ------------------------------------------------------------------------------------------------

create or replace function public.fn_iu_dead_letters_resolve(p_ids uuid[], p_why text, p_actor text default session_user)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_custom_plan
as $$
declare
    v_count integer;
begin
    if coalesce(btrim(p_why), '') = '' then
        raise exception 'resolving dead letters needs a reason' using errcode = 'invalid_parameter_value',
            hint = 'It is kept in each of them.';
    end if;
    perform from public.iu_delivery_lease l order by l.worker_name for update;
    perform from public.iu_route_dead_letter d where d.id = any (p_ids) order by d.created_at, d.id for update;
    -- A pending delivery resolves its dead letter when it arrives, so it has to be cancelled (delivery cancel) first.
    update public.iu_route_dead_letter d
       set resolved_at = clock_timestamp(), resolution = 'resolved by ' || p_actor || ': ' || p_why
     where d.id = any (p_ids) and d.resolved_at is null
       and not exists (select from public.iu_route_delivery x
                        where x.event_ref = d.event_ref and x.route_code || '' = d.route_code);
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
comment on function public.fn_iu_dead_letters_resolve(uuid[], text, text) is
    'Resolves dead letters without a replay, and records the actor and the reason; skips those whose delivery is '
    'pending. Answers the number.';
