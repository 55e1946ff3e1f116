-- Settlement: records the outcomes of deliveries.
--
-- Deliveries that arrived, which are nearly all, are settled in one statement. Failed deliveries are settled one by
-- one. Rows are looked up one by one (limit 1) and never joined, because the number of rows changes faster than a plan
-- is renewed.
--
-- Times are given as ages in seconds, because the clocks of consumers are not trusted. The lease is renewed in the same
-- transaction, so a consumer that has lost it settles nothing. The lock order is described in functions/dead_letters.
--
-- kind: repeatable
-- needs: 008, 012, functions/circuit_breaker, functions/delivery_lease, functions/delivery_policy, functions/event_snapshot, functions/idempotency_key
-- locks: nothing that other sessions use

create or replace function public.fn_iu_delivery_dead_letter(
    d public.iu_route_delivery, p_code text, p_detail text, p_policy jsonb, p_now timestamptz, p_called boolean)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    b public.iu_delivery_breaker;
begin
    delete from public.iu_route_delivery x where x.route_code = d.route_code and x.id = d.id;
    insert into public.iu_route_dead_letter
        (worker_name, event_ref, route_kind, route_code, idempotency_key, attempt_no, event_snapshot,
         failure_code, failure_detail)
    values (d.worker_name, d.event_ref, d.route_kind, d.route_code, public.fn_iu_idempotency_key(d.route_code, d.event_ref),
            d.attempt_no, coalesce(public.fn_iu_event_snapshot(d.event_ref), jsonb_build_object('id', d.event_ref)),
            p_code, p_detail)
    on conflict (idempotency_key) do update
       set resolved_at = null, resolution = null, attempt_no = excluded.attempt_no,
           failure_code = excluded.failure_code, failure_detail = excluded.failure_detail;
    if p_called then
        -- The caller has locked the breaker before the delivery, as the lock order demands.
        select x.* into b from public.iu_delivery_breaker x where x.route_code = d.route_code;
        perform public.fn_iu_breaker_store(
            public.fn_iu_breaker_after(b, 'dead_letter', p_policy, p_now, p_code => p_code));
    end if;
end
$$;
comment on function public.fn_iu_delivery_dead_letter(public.iu_route_delivery, text, text, jsonb, timestamptz, boolean) is
    'Makes a delivery a dead letter. p_called: the delivery was attempted, so it counts towards the budget of dead '
    'letters of its route, and may stop the route. The caller has locked the circuit breaker of the route.';

-- The effect of a failed attempt:
--
--     result        breaker before   breaker after   attempt spent             due again
--     rejected      any              closed          dead letter at once       -
--     rejected      stopped          stopped         no                        at once
--     interrupted   any              unchanged       yes                       after the backoff
--     failed        closed           closed          yes                       after the backoff
--     unavailable   closed           closed          if it is at fault         after the backoff if spent, else at once
--     either        closed           open            if it is at fault         at once
--     either        open             open            no                        at once
--
-- "Either" is failed or unavailable. "At once" means: with the next trial delivery, or when the breaker closes. A delay
-- that the target has asked for (retry_after) is always observed.
--
-- A delivery that could not be attempted (no target was called, because its payload is too large or its event is
-- missing) becomes a dead letter at once and has no effect on the breaker.
create or replace function public.fn_iu_delivery_settle_failed(f public.iu_delivery_failure)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    -- The start of the transaction, because an attempt must not begin after the dead letter that it makes.
    v_now       constant timestamptz := now();
    v_policy    constant jsonb := public.fn_iu_delivery_policy_of(f.route_code);
    v_called    constant boolean := f.target is not null;
    -- The number of openings for which one delivery gets its attempt back.
    v_credits   constant integer := 2;
    d           public.iu_route_delivery;
    b           public.iu_delivery_breaker;
    v_after     public.iu_delivery_breaker;
    v_rejected  boolean;
    v_opens     boolean;
    v_spent     boolean;
    v_dead      boolean;
    v_credit    integer;
    v_pause     double precision;
begin
    insert into public.iu_delivery_breaker (route_code) values (f.route_code) on conflict do nothing;
    select x.* into b from public.iu_delivery_breaker x where x.route_code = f.route_code for update;
    select x.* into d from public.iu_route_delivery x where x.route_code = f.route_code and x.id = f.id limit 1;
    -- A copy of the database that is behind gives the same ids to other events.
    if d.id is null or d.event_ref <> f.event_ref then
        return false;
    end if;
    d.at_fault := d.at_fault or f.at_fault;

    -- While the route is stopped, a rejection is a failed trial delivery. A rejection of a route that is not stopped has
    -- already closed the breaker (fn_iu_breaker_success).
    v_rejected := f.result = 'rejected' and (b.stopped_at is null or not v_called);
    v_after := public.fn_iu_breaker_after(
        b,
        case when f.result in ('failed', 'unavailable') then f.result
             when f.result = 'rejected' and not v_rejected then 'failed'
             when not v_called then 'not_called' end,
        v_policy, v_now, f.id, d.at_fault, f.retry_after, f.code, random());
    v_opens := b.opened_at is null and v_after.opened_at is not null;
    if v_opens then
        -- The failures that opened the breaker do not cost their deliveries an attempt.
        update public.iu_route_delivery x
           set tries = greatest(0, x.tries - 1), credits = x.credits + 1, at_fault = x.credits + 1 >= v_credits
         where x.route_code = f.route_code and x.id = any (v_after.failed_ids) and x.id <> f.id and not x.at_fault;
    end if;
    if v_after is distinct from b then
        perform public.fn_iu_breaker_store(v_after);
    end if;

    v_spent := case when f.result = 'rejected' then false
                    when f.result = 'interrupted' then true
                    when b.opened_at is not null then false
                    when v_opens then d.at_fault
                    else f.result = 'failed' or d.at_fault end;
    v_dead := v_rejected or v_spent and d.tries + 1 >= (v_policy ->> 'attempts')::integer;
    if v_dead then
        perform public.fn_iu_delivery_dead_letter(d, f.code, f.detail, v_policy, v_now, v_called);
    else
        v_credit := (v_opens and not v_spent)::integer;
        v_pause := case when v_spent then public.fn_iu_delivery_backoff(v_policy, d.tries) * (0.5 + random() / 2) else 0 end;
        update public.iu_route_delivery x
           set attempt_no = d.attempt_no + 1, tries = d.tries + v_spent::integer, credits = d.credits + v_credit,
               at_fault = d.at_fault or d.credits + v_credit >= v_credits, alone = f.result = 'interrupted',
               due_at = v_now + greatest(v_pause, f.retry_after) * interval '1 second',
               failed_at = v_now, failure_code = f.code, failure_detail = f.detail
         where x.route_code = f.route_code and x.id = f.id;
    end if;
    -- This comes after the delivery and the dead letter because of the lock order (functions/dead_letters).
    insert into public.iu_route_attempt
        (event_ref, route_kind, route_code, status, decision, delivered, failure_code, idempotency_key, attempt_no,
         route_count, traceparent, batch_xact_id, target, created_at, finished_at)
    values (d.event_ref, d.route_kind, f.route_code, 'failed',
            case when v_dead then 'dead_letter' when v_spent then 'retry' else 'outage' end, false, f.code,
            public.fn_iu_idempotency_key(f.route_code, d.event_ref), d.attempt_no, d.route_count, d.traceparent,
            d.batch_xact_id, f.target, v_now - f.began * interval '1 second', v_now - f.ended * interval '1 second')
    on conflict (idempotency_key, attempt_no) do nothing;
    return v_dead;
end
$$;
comment on function public.fn_iu_delivery_settle_failed(public.iu_delivery_failure) is
    'Settles one delivery that did not arrive: writes its attempt, updates the circuit breaker, and schedules the '
    'next attempt or makes a dead letter. True: it is a dead letter now.';

-- If a single delivery was in flight, it is known to have ended its process, so its attempt is spent. If several were
-- in flight, each of them is suspected and is attempted alone next.
create or replace function public.fn_iu_delivery_interrupted(p_routes text[], p_ids bigint[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_code   constant text := 'interrupted';
    v_detail constant text := 'The consumer ended, or lost its lease, while this delivery was in flight.';
    f        public.iu_delivery_failure;
begin
    if cardinality(p_ids) = 1 then
        f.route_code := p_routes[1];
        f.id := p_ids[1];
        f.result := 'interrupted';
        f.began := 0;
        f.ended := 0;
        f.code := v_code;
        f.detail := v_detail;
        f.at_fault := true;
        -- The target was given the trace span of this call, so the attempt names the target as far as the route
        -- describes it.
        select case when r.target_kind = 'external_endpoint'
                    then substring(r.target_ref from '^[A-Za-z][A-Za-z0-9+.-]*://')
                         || substring(r.target_ref from '^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#]*@)?([^/?#]*)')
                    else r.target_kind || ' ' || r.target_ref end
          into f.target
          from public.iu_outbound_route r
         where r.route_code = p_routes[1];
        perform public.fn_iu_delivery_settle_failed(f);
        return;
    end if;
    update public.iu_route_delivery d
       set alone = true, due_at = now() + interval '0.5 seconds', failed_at = now(), failure_code = v_code,
           failure_detail = v_detail
      from unnest(p_routes, p_ids) i(route_code, id)
     where d.route_code = i.route_code and d.id = i.id;
end
$$;
comment on function public.fn_iu_delivery_interrupted(text[], bigint[]) is
    'Marks the deliveries that were in flight when a lease ended without being released. A single delivery has spent '
    'an attempt; of several, each is attempted alone next.';

-- The last resort for a delivery with an attempt that the database refuses to store, for example because the application
-- has a CHECK or a trigger on iu_route_attempt. The attempt is spent nevertheless, so that the delivery comes to an end.
create or replace function public.fn_iu_delivery_unrecorded(
    p_worker_name text, p_owner uuid, p_route_code text, p_id bigint, p_code text, p_detail text)
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    v_policy constant jsonb := public.fn_iu_delivery_policy_of(p_route_code);
    d        public.iu_route_delivery;
begin
    perform from public.iu_delivery_lease l
      where l.worker_name = p_worker_name and l.owner = p_owner and not l.released for update;
    if not found then
        return null;
    end if;
    insert into public.iu_delivery_breaker (route_code) values (p_route_code) on conflict do nothing;
    perform from public.iu_delivery_breaker b where b.route_code = p_route_code for update;
    select x.* into d from public.iu_route_delivery x where x.route_code = p_route_code and x.id = p_id limit 1;
    if d.tries + 1 >= (v_policy ->> 'attempts')::integer then
        perform public.fn_iu_delivery_dead_letter(d, p_code, p_detail, v_policy, now(), true);
        return 1;
    end if;
    update public.iu_route_delivery x
       set attempt_no = d.attempt_no + 1, tries = d.tries + 1, failed_at = now(), failure_code = p_code,
           failure_detail = p_detail,
           due_at = now() + public.fn_iu_delivery_backoff(v_policy, d.tries) * interval '1 second'
     where x.route_code = p_route_code and x.id = p_id;
    return 0;
end
$$;
comment on function public.fn_iu_delivery_unrecorded(text, uuid, text, bigint, text, text) is
    'Spends an attempt of a delivery if its attempt row cannot be written. Answers the number of dead letters that '
    'this made (0 or 1). Null: the caller does not have the lease.';

-- An attempt with the same number may exist already, written by hand or by a restore. Then the attempts take the next
-- numbers, and the statement is executed a second time. If the second try is refused as well, the error is raised: the
-- caller settles the deliveries one by one.
create or replace function public.fn_iu_delivery_settle_sent(
    p_routes text[], p_ids bigint[], p_events uuid[], p_targets text[], p_began double precision[],
    p_ended double precision[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_now constant timestamptz := now();
begin
    for v_try in 1..2 loop
        begin
            with found as materialized (
                select x.ctid, s.began, s.ended, s.target
                  from unnest(p_routes, p_ids, p_events, p_targets, p_began, p_ended)
                       s(route_code, id, event, target, began, ended)
                 -- A copy of the database that is behind gives the same ids to other events.
                 cross join lateral (
                       select d.ctid
                         from public.iu_route_delivery d
                        where d.route_code = s.route_code and d.id = s.id and d.event_ref = s.event
                        limit 1) x
            ), gone as (
                delete from public.iu_route_delivery d
                 using found s
                 where d.ctid = s.ctid
                returning d.event_ref, d.route_kind, d.route_code, public.fn_iu_idempotency_key(d.route_code, d.event_ref) as key,
                          d.attempt_no, d.route_count, d.traceparent, d.batch_xact_id, d.replayed_by, s.began, s.ended,
                          s.target
            ), resolved as (
                update public.iu_route_dead_letter l
                   set attempt_no = g.attempt_no, resolved_at = v_now,
                       resolution = 'replayed by ' || g.replayed_by || ': delivered'
                  from gone g
                 where g.replayed_by is not null and l.idempotency_key = g.key and l.resolved_at is null
                returning l.attempt_no
            )
            insert into public.iu_route_attempt
                (event_ref, route_kind, route_code, status, decision, delivered, idempotency_key, attempt_no, route_count,
                 traceparent, batch_xact_id, target, created_at, finished_at)
            select g.event_ref, g.route_kind, g.route_code, 'sent', 'delivered', true, g.key, g.attempt_no, g.route_count,
                   g.traceparent, g.batch_xact_id, g.target, v_now - g.began * interval '1 second',
                   v_now - g.ended * interval '1 second'
              from gone g
             -- The subquery makes the update of the dead letters come before the attempts: the lock order of functions/dead_letters.
             where (select count(*) from resolved) >= 0;
            return;
        exception when unique_violation then
            if v_try = 2 then
                raise;
            end if;
            update public.iu_route_delivery d
               set attempt_no = (select max(a.attempt_no) + 1
                                   from public.iu_route_attempt a
                                  where a.idempotency_key = public.fn_iu_idempotency_key(d.route_code, d.event_ref))
              from unnest(p_routes, p_ids) s(route_code, id)
             where d.route_code = s.route_code and d.id = s.id
               and exists (select from public.iu_route_attempt a
                            where a.idempotency_key = public.fn_iu_idempotency_key(d.route_code, d.event_ref)
                              and a.attempt_no >= d.attempt_no);
        end;
    end loop;
end
$$;
comment on function public.fn_iu_delivery_settle_sent(
    text[], bigint[], uuid[], text[], double precision[], double precision[]) is
    'Part of fn_iu_delivery_settle; uses its planner settings. Settles deliveries that arrived: deletes their rows, '
    'writes one attempt for each, and resolves the dead letters of replays.';

-- Outcomes take effect in the order in which the attempts ended: failures before the last success of their route, then
-- successes, then the other failures.
create or replace function public.fn_iu_delivery_settle(
    p_worker_name text, p_owner uuid,
    p_sent_routes text[], p_sent_ids bigint[], p_sent_events uuid[], p_sent_targets text[],
    p_sent_began double precision[], p_sent_ended double precision[],
    p_failed_routes text[], p_failed_ids bigint[], p_failed_events uuid[], p_failed_targets text[],
    p_failed_began double precision[], p_failed_ended double precision[],
    p_results text[], p_codes text[], p_details text[], p_retry_after double precision[], p_beside boolean[])
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_failed   constant boolean := cardinality(p_failed_ids) > 0;
    v_settles  constant boolean := v_failed or cardinality(p_sent_ids) > 0;
    -- The routes with a target that answered, even if the answer was a rejection.
    v_answered text[] := p_sent_routes;
    v_before   public.iu_delivery_failure[];
    v_after    public.iu_delivery_failure[];
    f          public.iu_delivery_failure;
    v_dead     integer := 0;
begin
    if not public.fn_iu_delivery_lease_renew(p_worker_name, p_owner, v_settles) then
        return null;
    elsif not v_settles then
        return 0;
    end if;
    if v_failed then
        select array_agg(s.failure order by s.route_code, s.n) filter (where s.before),
               array_agg(s.failure order by s.route_code, s.n) filter (where not s.before),
               v_answered || array_agg(s.route_code) filter (where s.result = 'rejected' and s.target is not null)
          into v_before, v_after, v_answered
          from (select row(u.route_code, u.id, u.event, u.target, u.result, u.began, u.ended, u.code, u.detail,
                           u.retry_after, u.beside and u.result = 'failed')::public.iu_delivery_failure as failure,
                       u.*,
                       exists (select from unnest(p_sent_routes, p_sent_ended) x(route_code, ended)
                                where x.route_code = u.route_code and x.ended < u.ended) as before
                  from unnest(p_failed_routes, p_failed_ids, p_failed_events, p_failed_targets, p_failed_began,
                              p_failed_ended, p_results, p_codes, p_details, p_retry_after, p_beside)
                       with ordinality u(route_code, id, event, target, began, ended, result, code, detail, retry_after,
                                         beside, n)) s;
    end if;
    foreach f in array coalesce(v_before, '{}') loop
        v_dead := v_dead + public.fn_iu_delivery_settle_failed(f)::integer;
    end loop;
    if cardinality(v_answered) > 0 then
        perform public.fn_iu_breaker_success(v_answered, p_sent_routes);
    end if;
    if cardinality(p_sent_ids) > 0 then
        perform public.fn_iu_delivery_settle_sent(
            p_sent_routes, p_sent_ids, p_sent_events, p_sent_targets, p_sent_began, p_sent_ended);
    end if;
    foreach f in array coalesce(v_after, '{}') loop
        v_dead := v_dead + public.fn_iu_delivery_settle_failed(f)::integer;
    end loop;
    return v_dead;
end
$$;
comment on function public.fn_iu_delivery_settle(
    text, uuid, text[], bigint[], uuid[], text[], double precision[], double precision[], text[], bigint[], uuid[], text[],
    double precision[], double precision[], text[], text[], text[], double precision[], boolean[]) is
    'Renews the delivery lease and records outcomes: a delivery that arrived is deleted, a failed one waits for its '
    'next attempt or becomes a dead letter. p_sent_targets, p_failed_targets: the called targets, as the attempts store '
    'them; null: nothing was called. p_beside: another delivery of the route succeeded during this attempt, or within a '
    'second before it. Answers the number of new dead letters. Null: the caller does not have the lease, and nothing '
    'was written.';
