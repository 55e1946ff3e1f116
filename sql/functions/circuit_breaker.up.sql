-- The circuit breaker of a route, and its budget of dead letters.
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
--     failed, unavailable        counts; open if it is    unchanged      open, if it is the     as open, half-open
--                                the last of n failures                  trial delivery
--     not called                 unchanged                unchanged      open, if it is the     as open, half-open
--                                                                        trial delivery
--     dead letter                counts; stopped if it is the last of the budget                counts
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
--
-- kind: repeatable
-- needs: 012, functions/delivery_policy, functions/wake
-- locks: nothing that other sessions use

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
    v_longest   constant double precision := (p_policy ->> 'trial_interval_max')::double precision;
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
    perform public.fn_iu_ring_consumers();
    return true;
end
$$;
comment on function public.fn_iu_route_resume(text) is
    'Closes the circuit breaker of a route and gives the route a new budget of dead letters. False: the route was not '
    'paused by either.';
