-- The lease that lets one consumer deliver for a worker, the circuit breaker of each route, and the settlement of
-- attempts.
--
-- needs: 008, 009, 012, functions/event_snapshot
-- locks: nothing that exists

-- Lease --------------------------------------------------------------------------------------------------
--
-- At any time one consumer delivers for a worker: the holder of the delivery lease. Taking a delivery does not mark its
-- row: all rows of the worker belong to the lease holder as long as it has the lease, so taking costs no write. Each
-- settlement renews the lease in its own transaction, so a consumer that has lost the lease settles nothing.
--
-- The lease ends when its holder releases it, when it was not renewed in time, or when the session of its holder has
-- ended; so after a kill -9 no consumer has to wait until the lease expires. A holder that has lost only its session
-- must be able to notice that before another consumer takes the lease. Therefore a consumer that wants the lease asks
-- twice, and names in the second request the holder without a session at the first. Setting the clock back does
-- not prolong a lease.
--
-- A lease that ended without being released may mean that a delivery has ended the process of its holder (a
-- segmentation fault, lack of memory, a call that blocks the event loop for longer than the lease). For some time the
-- next holder then records the deliveries in flight (in_flight_routes, in_flight_ids) before it calls their targets:
-- docs/why/delivery.md, "A delivery that ends the process".
create table public.iu_delivery_lease (
    worker_name       text              not null,
    owner             uuid              not null,
    backend           integer,
    backend_start     timestamptz,
    seconds           double precision  not null,
    renewed_at        timestamptz       not null default clock_timestamp(),
    released          boolean           not null default false,
    settled_at        timestamptz,
    in_flight_routes  text[]            not null default '{}',
    in_flight_ids     bigint[]          not null default '{}',

    constraint iu_delivery_lease_pkey primary key (worker_name)
)
with (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
comment on table public.iu_delivery_lease is 'The consumer that delivers for each worker.';
comment on column public.iu_delivery_lease.worker_name is 'Name of the worker.';
comment on column public.iu_delivery_lease.owner is 'The lease holder (iu_consumer_heartbeat.consumer_id).';
comment on column public.iu_delivery_lease.backend is
    'Process id of the lease holder''s server process. Null: a pooler hides it.';
comment on column public.iu_delivery_lease.backend_start is
    'Start time of the lease holder''s server process. Null: a pooler hides it.';
comment on column public.iu_delivery_lease.seconds is 'Seconds after renewed_at at which the lease expires.';
comment on column public.iu_delivery_lease.renewed_at is 'Time of the last renewal.';
comment on column public.iu_delivery_lease.released is 'True: the holder has released the lease.';
comment on column public.iu_delivery_lease.settled_at is
    'Time of the last settlement of deliveries. Null: there was none.';
comment on column public.iu_delivery_lease.in_flight_routes is
    'Routes of the in-flight deliveries, while the lease holder records them. Otherwise empty.';
comment on column public.iu_delivery_lease.in_flight_ids is
    'Ids of the in-flight deliveries, in the order of in_flight_routes.';
comment on constraint iu_delivery_lease_pkey on public.iu_delivery_lease is 'A worker has one delivery lease.';

create or replace function public.fn_iu_delivery_lease(
    p_worker_name text, p_owner uuid, p_seconds double precision, p_pooled boolean, p_gone_holder uuid)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    l         public.iu_delivery_lease;
    v_now     timestamptz;
    v_start   timestamptz;
    v_gone    boolean;
    v_valid   boolean;
    v_unclean boolean;
begin
    insert into public.iu_delivery_lease (worker_name, owner, seconds, released)
    values (p_worker_name, p_owner, p_seconds, true)
    on conflict do nothing;
    select x.* into l from public.iu_delivery_lease x where x.worker_name = p_worker_name for update;
    v_now := clock_timestamp();
    v_gone := l.backend is not null
              and not exists (select from pg_catalog.pg_stat_activity a
                               where a.pid = l.backend and coalesce(a.backend_start = l.backend_start, true));
    v_valid := not l.released and v_now between l.renewed_at and l.renewed_at + l.seconds * interval '1 second';
    if v_valid and l.owner <> p_owner and not (v_gone and l.owner is not distinct from p_gone_holder) then
        return jsonb_build_object('held', false, 'holder', l.owner, 'holder_gone', v_gone);
    end if;
    v_unclean := not l.released and (l.owner <> p_owner or not v_valid);
    if v_unclean then
        perform public.fn_iu_delivery_interrupted(l.in_flight_routes, l.in_flight_ids);
    end if;
    select a.backend_start into v_start from pg_catalog.pg_stat_activity a where a.pid = pg_backend_pid();
    update public.iu_delivery_lease x
       set owner = p_owner, seconds = p_seconds, renewed_at = v_now, released = false,
           backend = case when not p_pooled then pg_backend_pid() end,
           backend_start = case when not p_pooled then v_start end,
           in_flight_routes = case when v_unclean or l.released then '{}' else x.in_flight_routes end,
           in_flight_ids = case when v_unclean or l.released then '{}' else x.in_flight_ids end
     where x.worker_name = p_worker_name;
    return jsonb_build_object('held', true, 'continuous', l.owner = p_owner and v_valid, 'unclean', v_unclean);
end
$$;
comment on function public.fn_iu_delivery_lease(text, uuid, double precision, boolean, uuid) is
    'Takes or renews the delivery lease of a worker, if it is free. continuous: the caller has held it without a '
    'break. holder_gone: the session of the holder has ended; a caller that asks again and names that holder in '
    'p_gone_holder gets the lease. unclean: the lease ended without being released, and the deliveries that were recorded as in flight were '
    'marked.';

create or replace function public.fn_iu_delivery_in_flight(p_worker_name text, p_owner uuid, p_routes text[], p_ids bigint[])
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
begin
    update public.iu_delivery_lease l
       set in_flight_routes = p_routes, in_flight_ids = p_ids
     where l.worker_name = p_worker_name and l.owner = p_owner and not l.released;
    return found;
end
$$;
comment on function public.fn_iu_delivery_in_flight(text, uuid, text[], bigint[]) is
    'Records the deliveries that the lease holder is about to attempt. False: the caller does not have the lease.';

create or replace function public.fn_iu_delivery_release(p_worker_name text, p_owner uuid)
returns void
language sql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
    update public.iu_delivery_lease x set released = true where x.worker_name = p_worker_name and x.owner = p_owner
$$;
comment on function public.fn_iu_delivery_release(text, uuid) is
    'Releases the delivery lease of a worker, if the caller has it.';

-- Circuit breaker ----------------------------------------------------------------------------------------
--
-- The circuit breaker of a route is a state machine with three states, and the budget of dead letters adds a fourth.
-- One row of iu_delivery_breaker stores its state:
--
--     state      columns                       calls of the target
--     closed     opened_at is null             every delivery
--     open       opened_at is set              none, until trial_at
--     half-open  opened_at, trial_id are set   one trial delivery, trial_id
--     stopped    stopped_at is set as well     as in open and half-open
--
-- fn_iu_breaker_after contains all transitions except one. The exception is the step from open to half-open: the take
-- query makes it when it gives out a trial delivery (fn_iu_delivery_take).
--
--     event                      closed                   open           half-open              stopped
--     arrived, resumed           closed                   closed         closed                 closed
--     rejected                   closed                   closed         closed                 unchanged
--     failed, unavailable        counts; open if it is    unchanged      open, if it is the     as in open and half-open
--                                the last of n failures                  trial delivery
--     not called                 unchanged                unchanged      open, if it is the     as in open and half-open
--                                                                        trial delivery
--     dead letter                counts; stopped if it is the last of the budget                unchanged
--     a trial delivery is taken  -                        half-open      -                      half-open
--
-- n is the setting "breaker" of the delivery policy. A result "unavailable" with a delay that the target asks for
-- (retry_after) opens the breaker at once. Each failed trial delivery doubles the pause before the next one.
--
-- A success is a delivery that arrived, or one that the target rejected for good: in both cases the target answers.
-- Every success counts, not only that of the trial delivery.
--
-- A target that rejects every delivery also answers, so the breaker alone would stay closed. Therefore consecutive dead
-- letters are counted: those without a delivery that arrived between them. When they reach the limit of the policy, the
-- route is stopped and its breaker opens. While the route is stopped, a rejection counts as a failed trial delivery: the
-- delivery waits and does not become a dead letter. The route goes on when a delivery arrives, or when an operator
-- resumes it. Only a delivery that arrives proves that the target is well and the events were bad, because a producer
-- can forge every column of an event. In that case the limit is multiplied by eight for one hour (lifted_at).
--
-- A failure indicates a problem of the target only if no other delivery of the route succeeds at about the same time. A
-- delivery that failed between two successes, or within a second of one, is itself at fault (at_fault): it spends its
-- attempts, and its later failures do not open the breaker, unless very many deliveries fail. When the breaker opens,
-- the attempts that the failures since the last success have cost are given back to their deliveries, but at most twice
-- for each delivery (credits): a delivery that takes part in every opening is at fault as well, and becomes a dead
-- letter.
--
-- While the breaker is open, one trial delivery at a time is attempted, at growing intervals (half-open): in turns the
-- newest delivery, the oldest one that was never attempted, and one that has failed. So failing deliveries cannot keep
-- the breaker open, however many of them wait before one that would succeed.
create table public.iu_delivery_breaker (
    route_code    text         not null,
    failures      integer      not null default 0,
    failed_ids    bigint[]     not null default '{}',
    opened_at     timestamptz,
    trials        integer      not null default 0,
    trial_at      timestamptz,
    trial_id      bigint,
    why           text,
    dead_letters  integer      not null default 0,
    stopped_at    timestamptz,
    lifted_at     timestamptz,

    constraint iu_delivery_breaker_pkey primary key (route_code)
)
with (fillfactor = 50);
comment on table public.iu_delivery_breaker is
    'The circuit breaker of each route, and its budget of dead letters. A route has no row until one of its '
    'deliveries has failed.';
comment on column public.iu_delivery_breaker.route_code is 'Code of the route.';
comment on column public.iu_delivery_breaker.failures is
    'Failures since the last success that count towards opening the breaker: those of different deliveries, and every '
    'result "unavailable"; without deliveries that are at fault themselves.';
comment on column public.iu_delivery_breaker.failed_ids is
    'Ids of all deliveries that have failed since the last success.';
comment on column public.iu_delivery_breaker.opened_at is 'Time at which the breaker opened. Null: it is closed.';
comment on column public.iu_delivery_breaker.trials is 'Trial deliveries that have failed since the breaker opened.';
comment on column public.iu_delivery_breaker.trial_at is
    'Time at which the next trial delivery is due. Null: the breaker is closed.';
comment on column public.iu_delivery_breaker.trial_id is
    'Id of the trial delivery that is in flight. Null: there is none.';
comment on column public.iu_delivery_breaker.why is
    'Failure code of the failure that opened the breaker, or of the last failed trial delivery. Null: the breaker is '
    'closed.';
comment on column public.iu_delivery_breaker.dead_letters is
    'Consecutive dead letters of deliveries that were attempted, without a delivery that arrived between them.';
comment on column public.iu_delivery_breaker.stopped_at is
    'Time at which the route was stopped because it had spent its budget of dead letters. Null: it is not stopped.';
comment on column public.iu_delivery_breaker.lifted_at is
    'Time at which a delivery last arrived after the budget of dead letters was spent. For one hour after it the '
    'budget is eight times as large.';
comment on constraint iu_delivery_breaker_pkey on public.iu_delivery_breaker is 'A route has one circuit breaker.';

create or replace function public.fn_iu_breaker_after(
    b public.iu_delivery_breaker, p_event text, p_policy jsonb, p_now timestamptz, p_id bigint default null,
    p_at_fault boolean default false, p_retry_after double precision default null, p_code text default null,
    p_jitter double precision default 1)
returns public.iu_delivery_breaker
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_limit     constant integer := (p_policy ->> 'breaker')::integer;
    v_budget    bigint := (p_policy ->> 'dead_letters_in_a_row')::bigint;
    v_longest   constant double precision := (p_policy ->> 'probe_max')::double precision;
    v_second    constant interval := interval '1 second';
    v_different boolean;
begin
    if p_event in ('arrived', 'resumed') or p_event = 'rejected' and b.stopped_at is null then
        if p_event <> 'rejected' then
            b.lifted_at := case when p_event = 'arrived' and b.dead_letters >= v_budget then p_now
                                when p_event = 'arrived' then b.lifted_at end;
            b.dead_letters := 0;
            b.stopped_at := null;
        end if;
        b.failures := 0;
        b.failed_ids := '{}';
        b.opened_at := null;
        b.trials := 0;
        b.trial_at := null;
        b.trial_id := null;
        b.why := null;
    elsif p_event in ('failed', 'unavailable') and b.opened_at is null then
        v_different := p_id <> all (b.failed_ids);
        if v_different then
            b.failed_ids := b.failed_ids || p_id;
        end if;
        -- An unavailable target counts each time. Otherwise a single waiting delivery would spend its attempts during an
        -- outage.
        if (v_different or p_event = 'unavailable') and not p_at_fault then
            b.failures := b.failures + 1;
        end if;
        if b.failures >= v_limit or cardinality(b.failed_ids) >= 2 * v_limit + 40
           or p_event = 'unavailable' and not p_at_fault and p_retry_after is not null then
            b.opened_at := p_now;
            b.trials := 0;
            b.trial_id := null;
            b.trial_at := p_now + v_second * greatest(p_retry_after, least(0.25, v_longest));
            b.why := p_code;
        end if;
    -- Of the deliveries that were in flight when the breaker opened, only the trial delivery changes it.
    elsif p_event in ('failed', 'unavailable') and b.trial_id = p_id then
        b.trials := b.trials + 1;
        b.trial_id := null;
        b.trial_at := p_now + v_second * greatest(
            p_retry_after, least(0.25 * 2 ^ least(b.trials, 20), v_longest) * (0.5 + p_jitter / 2));
        b.why := p_code;
    elsif p_event = 'not_called' and b.trial_id = p_id then
        b.trial_id := null;
        b.trial_at := p_now;
    elsif p_event = 'dead_letter' then
        b.dead_letters := b.dead_letters + 1;
        if b.lifted_at between p_now - interval '1 hour' and p_now then
            v_budget := 8 * v_budget;
        end if;
        if b.stopped_at is null and b.dead_letters >= v_budget then
            b.stopped_at := p_now;
            b.opened_at := coalesce(b.opened_at, p_now);
            b.trials := 0;
            b.trial_id := null;
            b.trial_at := p_now + v_second * least(0.25, v_longest);
            b.why := p_code;
        end if;
    end if;
    return b;
end
$$;
comment on function public.fn_iu_breaker_after(
    public.iu_delivery_breaker, text, jsonb, timestamptz, bigint, boolean, double precision, text, double precision) is
    'The circuit breaker of a route after an event: arrived, rejected, failed, unavailable, not_called (a delivery '
    'could not be attempted), dead_letter or resumed. A pure function: it reads no table, and p_jitter is a random '
    'number from 0 to 1.';

create or replace function public.fn_iu_breaker_store(b public.iu_delivery_breaker)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    update public.iu_delivery_breaker x
       set failures = b.failures, failed_ids = b.failed_ids, opened_at = b.opened_at, trials = b.trials,
           trial_at = b.trial_at, trial_id = b.trial_id, why = b.why, dead_letters = b.dead_letters,
           stopped_at = b.stopped_at, lifted_at = b.lifted_at
     where x.route_code = b.route_code;
end
$$;
comment on function public.fn_iu_breaker_store(public.iu_delivery_breaker) is
    'Writes the state of a circuit breaker. The caller has locked its row.';

-- If a breaker was closed, the deliveries that failed since the last success are marked as at fault, because their
-- failures lie between two successes.
create or replace function public.fn_iu_breaker_success(p_routes text[], p_arrived text[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    b       public.iu_delivery_breaker;
    v_after public.iu_delivery_breaker;
begin
    for b in
        select x.*
          from public.iu_delivery_breaker x
         where x.route_code = any (p_routes) and (x.failed_ids <> '{}' or x.opened_at is not null or x.dead_letters > 0)
         order by x.route_code
           for update
    loop
        v_after := public.fn_iu_breaker_after(
            b, case when b.route_code = any (p_arrived) then 'arrived' else 'rejected' end,
            public.fn_iu_delivery_policy_of(b.route_code), now());
        continue when v_after is not distinct from b;
        if b.opened_at is null then
            update public.iu_route_delivery d
               set at_fault = true
             where d.route_code = b.route_code and d.id = any (b.failed_ids);
        end if;
        perform public.fn_iu_breaker_store(v_after);
    end loop;
end
$$;
comment on function public.fn_iu_breaker_success(text[], text[]) is
    'Closes the circuit breakers of routes with a target that answered, and marks the deliveries that failed before it '
    'by their own fault. p_arrived: the routes with a delivery that arrived; their count of consecutive dead letters '
    'becomes 0.';

create or replace function public.fn_iu_route_resume(p_route_code text)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    b public.iu_delivery_breaker;
begin
    select x.* into b
      from public.iu_delivery_breaker x
     where x.route_code = p_route_code and (x.opened_at is not null or x.stopped_at is not null)
       for update;
    if not found then
        return false;
    end if;
    perform public.fn_iu_breaker_store(public.fn_iu_breaker_after(b, 'resumed', '{}', now()));
    return true;
end
$$;
comment on function public.fn_iu_route_resume(text) is
    'Closes the circuit breaker of a route and gives the route a new budget of dead letters. False: the route was not '
    'paused by either.';

-- Answers the first reason that applies. A route paused by its breaker or its budget still gets trial deliveries. The
-- parameters are single columns of the route and of its breaker, because passing whole rows would cost more than the
-- function itself.
create or replace function public.fn_iu_delivery_paused_by(
    p_route_code text, p_enabled boolean, p_dry_run boolean, p_stopped_at timestamptz, p_opened_at timestamptz)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return case when p_enabled is not true then 'route_disabled'
                when p_dry_run then 'dry_run'
                else coalesce(public.fn_iu_delivery_closed_switch(p_route_code),
                              case when p_stopped_at is not null then 'dead_letter_budget'
                                   when p_opened_at is not null then 'breaker_open' end) end;
end
$$;
comment on function public.fn_iu_delivery_paused_by(text, boolean, boolean, timestamptz, timestamptz) is
    'The reason why a route is paused: route_disabled, dry_run, one of the reasons of fn_iu_delivery_closed_switch, '
    'dead_letter_budget, or breaker_open. Null: the route delivers.';

-- Settlement ---------------------------------------------------------------------------------------------
--
-- Deliveries that arrived, which are nearly all, are settled in one statement. Failed deliveries are settled one by
-- one. Rows are looked up one by one (limit 1) and never joined, because the number of rows changes faster than a plan
-- is renewed.
--
-- Times are given as ages in seconds, because the clocks of consumers are not trusted. The lease is renewed in the same
-- transaction, so a consumer that has lost it settles nothing. The lock order is described in 024.

create type public.iu_delivery_failure as (
    route_code   text,
    id           bigint,
    event_ref    uuid,
    target       text,
    result       text,
    began        double precision,
    ended        double precision,
    code         text,
    detail       text,
    retry_after  double precision,
    at_fault     boolean
);
comment on type public.iu_delivery_failure is
    'The outcome of a delivery that did not arrive. result: rejected, failed, unavailable or interrupted. began, ended: '
    'ages of the beginning and the end of the call, in seconds. event_ref null: the caller does not know the event. '
    'target null: no target was called. retry_after: the delay that the target asked for, in seconds. at_fault: it '
    'failed while other deliveries of its route succeeded.';

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
    values (d.worker_name, d.event_ref, d.route_kind, d.route_code, 'outbound:' || d.route_code || ':' || d.event_ref,
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
    -- This comes after the delivery and the dead letter because of the lock order (024).
    insert into public.iu_route_attempt
        (event_ref, route_kind, route_code, status, decision, delivered, failure_code, idempotency_key, attempt_no,
         route_count, traceparent, batch_xact_id, target, created_at, finished_at)
    values (d.event_ref, d.route_kind, f.route_code, 'failed',
            case when v_dead then 'dead_letter' when v_spent then 'retry' else 'outage' end, false, f.code,
            'outbound:' || f.route_code || ':' || d.event_ref, d.attempt_no, d.route_count, d.traceparent,
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
                returning d.event_ref, d.route_kind, d.route_code, 'outbound:' || d.route_code || ':' || d.event_ref as key,
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
             -- The subquery makes the update of the dead letters come before the attempts: the lock order of 024.
             where (select count(*) from resolved) >= 0;
            return;
        exception when unique_violation then
            if v_try = 2 then
                raise;
            end if;
            update public.iu_route_delivery d
               set attempt_no = (select max(a.attempt_no) + 1
                                   from public.iu_route_attempt a
                                  where a.idempotency_key = 'outbound:' || d.route_code || ':' || d.event_ref)
              from unnest(p_routes, p_ids) s(route_code, id)
             where d.route_code = s.route_code and d.id = s.id
               and exists (select from public.iu_route_attempt a
                            where a.idempotency_key = 'outbound:' || d.route_code || ':' || d.event_ref
                              and a.attempt_no >= d.attempt_no);
        end;
    end loop;
end
$$;
comment on function public.fn_iu_delivery_settle_sent(
    text[], bigint[], uuid[], text[], double precision[], double precision[]) is
    'Part of fn_iu_delivery_settle; uses its planner settings. Settles deliveries that arrived: deletes their rows, '
    'writes one attempt for each, and resolves the dead letters of replays.';

create or replace function public.fn_iu_delivery_lease_renew(p_worker_name text, p_owner uuid, p_settles boolean)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    -- A call that settles nothing must not wait for the disk: it renews the lease only when a quarter of its time is
    -- over.
    if not p_settles and exists (
           select from public.iu_delivery_lease l
            where l.worker_name = p_worker_name and l.owner = p_owner and not l.released
              and now() between l.renewed_at and l.renewed_at + l.seconds / 4 * interval '1 second') then
        return true;
    end if;
    update public.iu_delivery_lease l
       set renewed_at = now(), settled_at = case when p_settles then now() else l.settled_at end
     where l.worker_name = p_worker_name and l.owner = p_owner and not l.released;
    return found;
end
$$;
comment on function public.fn_iu_delivery_lease_renew(text, uuid, boolean) is
    'Part of fn_iu_delivery_settle; uses its planner settings. Renews the delivery lease of a worker. p_settles: the '
    'transaction settles deliveries. False: the caller does not have the lease.';

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
