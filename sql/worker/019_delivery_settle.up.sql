-- Who delivers, and what came of it: the lease of a worker, the breaker of a route, and how attempts are settled.
--
-- needs: 008, 009, 012
-- locks: nothing that exists

-- Lease --------------------------------------------------------------------------------------------------
--
-- One consumer delivers for a worker. What it takes is not marked: the rows are its own as long as the lease is, so taking
-- costs no write, and whoever comes after it finds them as they are. The lease is renewed by every turn, in the turn's own
-- transaction; a consumer that was thought dead settles nothing.
--
-- It ends when it is given back, when it was not renewed in time, or when its session has ended: after a kill -9 nobody
-- has to wait for its end. Who lives and has lost his session must be able to hear of it, though: whoever wants the lease
-- has to come twice, and to say the second time whom he has seen without a session. A clock that was set back makes no
-- lease longer.
create table public.iu_delivery_lease (
    worker_name    text              not null,
    owner          uuid              not null,
    backend        integer,
    backend_start  timestamptz,
    seconds        double precision  not null,
    renewed_at     timestamptz       not null default clock_timestamp(),
    released       boolean           not null default false,

    constraint iu_delivery_lease_pkey primary key (worker_name)
)
with (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
comment on table public.iu_delivery_lease is 'Which consumer delivers for each worker.';
comment on column public.iu_delivery_lease.worker_name is 'Name of the worker.';
comment on column public.iu_delivery_lease.owner is 'The consumer (iu_consumer_heartbeat.consumer_id).';
comment on column public.iu_delivery_lease.backend is 'Server process of its session. Null: a pooler hides it.';
comment on column public.iu_delivery_lease.backend_start is 'When that began.';
comment on column public.iu_delivery_lease.seconds is 'How long the lease lasts when it is not renewed.';
comment on column public.iu_delivery_lease.renewed_at is 'When it was last renewed.';
comment on column public.iu_delivery_lease.released is 'True: it was given back.';
comment on constraint iu_delivery_lease_pkey on public.iu_delivery_lease is 'One lease a worker.';

create function public.fn_iu_delivery_lease(
    p_worker_name text, p_owner uuid, p_seconds double precision, p_pooled boolean, p_gone uuid)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
    l       public.iu_delivery_lease;
    v_now   timestamptz;
    v_start timestamptz;
    v_gone  boolean;
begin
    insert into public.iu_delivery_lease (worker_name, owner, seconds, released)
    values (p_worker_name, p_owner, p_seconds, true)
    on conflict do nothing;
    select x.* into l from public.iu_delivery_lease x where x.worker_name = p_worker_name for update;
    v_now := clock_timestamp();
    v_gone := l.backend is not null
              and not exists (select from pg_catalog.pg_stat_activity a
                               where a.pid = l.backend and coalesce(a.backend_start = l.backend_start, true));
    if l.owner <> p_owner and not l.released and not (v_gone and l.owner is not distinct from p_gone)
       and v_now between l.renewed_at and l.renewed_at + l.seconds * interval '1 second' then
        return jsonb_build_object('held', false, 'holder', l.owner, 'gone', v_gone);
    end if;
    select a.backend_start into v_start from pg_catalog.pg_stat_activity a where a.pid = pg_backend_pid();
    update public.iu_delivery_lease x
       set owner = p_owner, seconds = p_seconds, renewed_at = v_now, released = false,
           backend = case when not p_pooled then pg_backend_pid() end,
           backend_start = case when not p_pooled then v_start end
     where x.worker_name = p_worker_name;
    return jsonb_build_object('held', true, 'again', l.owner = p_owner and not l.released);
end
$$;
comment on function public.fn_iu_delivery_lease(text, uuid, double precision, boolean, uuid) is
    'Takes the lease of a worker''s deliveries, if nobody has it. again: it was ours without a break. gone: its holder has '
    'no session any more; who asks again and names him (p_gone) gets it.';

create function public.fn_iu_delivery_release(p_worker_name text, p_owner uuid)
returns void
language sql
set search_path = ''
as $$
    update public.iu_delivery_lease x set released = true where x.worker_name = p_worker_name and x.owner = p_owner
$$;
comment on function public.fn_iu_delivery_release(text, uuid) is 'Gives the lease back, if it is ours.';

-- Breaker ------------------------------------------------------------------------------------------------
--
-- An outage is no poison. When so many attempts in a row fail, of different events, or a target says itself that it takes
-- nothing, the route is held: nothing is spent, what these failures had cost their events is given back, and one
-- delivery at a time tries whether the target is there again, at growing intervals. A target that answers, be it with a
-- refusal, is there.
--
-- An event that fails while others arrive is on its own, and so is the only one that there is: it spends its attempts.
create table public.iu_delivery_breaker (
    route_code    text         not null,
    failures      integer      not null default 0,
    last_id       bigint,
    streak_from   timestamptz,
    opened_at     timestamptz,
    probes        integer      not null default 0,
    probe_at      timestamptz,
    probing_id    bigint,
    why           text,
    letters       integer      not null default 0,
    letters_from  timestamptz,
    stopped_at    timestamptz,

    constraint iu_delivery_breaker_pkey primary key (route_code)
)
with (fillfactor = 50);
comment on table public.iu_delivery_breaker is 'What keeps a route from delivering although its locks are open. No row: nothing ever did.';
comment on column public.iu_delivery_breaker.route_code is 'The route.';
comment on column public.iu_delivery_breaker.failures is 'Failures in a row, of different events.';
comment on column public.iu_delivery_breaker.last_id is 'The delivery that failed last.';
comment on column public.iu_delivery_breaker.streak_from is 'When these failures began.';
comment on column public.iu_delivery_breaker.opened_at is 'Since when the route is held. Null: it is not.';
comment on column public.iu_delivery_breaker.probes is 'How many probes have failed since.';
comment on column public.iu_delivery_breaker.probe_at is 'When one delivery is tried again.';
comment on column public.iu_delivery_breaker.probing_id is 'The delivery that is.';
comment on column public.iu_delivery_breaker.why is 'The last failure.';
comment on column public.iu_delivery_breaker.letters is 'Dead letters since letters_from.';
comment on column public.iu_delivery_breaker.letters_from is 'Beginning of the hour in which they are counted.';
comment on column public.iu_delivery_breaker.stopped_at is
    'Since when the route is stopped, because it made more dead letters than its budget. Null: it is not.';
comment on constraint iu_delivery_breaker_pkey on public.iu_delivery_breaker is 'One breaker a route.';

create function public.fn_iu_route_resume(p_route_code text)
returns boolean
language plpgsql
set search_path = ''
as $$
begin
    update public.iu_delivery_breaker b
       set failures = 0, last_id = null, streak_from = null, opened_at = null, probes = 0, probe_at = null,
           probing_id = null, why = null, letters = 0, letters_from = null, stopped_at = null
     where b.route_code = p_route_code and (b.opened_at is not null or b.stopped_at is not null);
    return found;
end
$$;
comment on function public.fn_iu_route_resume(text) is
    'Lets a route go on that its breaker holds, or that has spent its budget of dead letters. False: neither was so.';

-- What holds a route back, the first of all reasons; null: nothing does. A breaker lets one through when its time has come.
-- Columns of the route and of its breaker; the rows themselves would cost more than what is asked of them.
create function public.fn_iu_delivery_held(
    p_route_code text, p_enabled boolean, p_dry_run boolean, p_stopped_at timestamptz, p_opened_at timestamptz)
returns text
language plpgsql
stable
set search_path = ''
as $$
begin
    return case when p_enabled is not true then 'route_disabled'
                when p_dry_run then 'dry_run'
                else coalesce(public.fn_iu_delivery_lock(p_route_code),
                              case when p_stopped_at is not null then 'dead_letter_budget'
                                   when p_opened_at is not null then 'breaker_open' end) end;
end
$$;
comment on function public.fn_iu_delivery_held(text, boolean, boolean, timestamptz, timestamptz) is
    'What holds the deliveries of a route back: route_disabled, dry_run, a lock, dead_letter_budget, breaker_open; null: nothing.';

-- Settle -------------------------------------------------------------------------------------------------
--
-- What arrived is settled in one statement, which is nearly all of it; what did not, one by one. Rows are looked up one by
-- one (limit 1) and never joined: how many there are changes faster than any plan.
--
-- Times are given as ages: the clocks of consumers are nobody's business. The lease is renewed in the same transaction, so
-- whoever has lost it settles nothing.
create function public.fn_iu_delivery_settle(
    p_worker_name text, p_owner uuid,
    p_sent_routes text[], p_sent_ids bigint[], p_sent_began double precision[], p_sent_ended double precision[],
    p_routes text[], p_ids bigint[], p_results text[], p_began double precision[], p_ended double precision[],
    p_codes text[], p_details text[], p_retry_after double precision[])
returns integer
language plpgsql
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    -- As the dead letters are dated: an attempt does not begin after the one that it made.
    v_now     constant timestamptz := now();
    f         record;
    b         public.iu_delivery_breaker;
    v_policy  jsonb;
    v_spent   boolean;
    v_dead    boolean;
    v_pause   double precision;
    v_letters integer := 0;
    -- Whose target answered, be it with a refusal.
    v_alive   constant text[] := array(select unnest(p_sent_routes)
                                        union
                                       select s.route_code
                                         from unnest(p_routes, p_results) s(route_code, result)
                                        where s.result = 'rejected');
    v_none    constant boolean := cardinality(p_sent_ids || p_ids) = 0;
begin
    -- A turn that settles nothing waits for no disk: it renews the lease when a quarter of it is over.
    if v_none and exists (
           select from public.iu_delivery_lease l
            where l.worker_name = p_worker_name and l.owner = p_owner and not l.released
              and v_now between l.renewed_at and l.renewed_at + l.seconds / 4 * interval '1 second') then
        return 0;
    end if;
    update public.iu_delivery_lease l
       set renewed_at = v_now
     where l.worker_name = p_worker_name and l.owner = p_owner and not l.released;
    if not found then
        return null;
    elsif v_none then
        return 0;
    end if;

    begin
        with found as materialized (
            select x.ctid, s.began, s.ended
              from unnest(p_sent_routes, p_sent_ids, p_sent_began, p_sent_ended) s(route_code, id, began, ended)
             cross join lateral (
                   select d.ctid
                     from public.iu_route_delivery d
                    where d.route_code = s.route_code and d.id = s.id
                    limit 1) x
        ), gone as (
            delete from public.iu_route_delivery d
             using found s
             where d.ctid = s.ctid
            returning d.event_ref, d.route_kind, d.route_code, 'outbound:' || d.route_code || ':' || d.event_ref as key,
                      d.attempt_no, d.route_count, d.traceparent, d.replayed_by, s.began, s.ended
        ), resolved as (
            update public.iu_route_dead_letter l
               set attempt_no = g.attempt_no, resolved_at = v_now, resolution = 'replayed by ' || g.replayed_by || ': delivered'
              from gone g
             where g.replayed_by is not null and l.idempotency_key = g.key and l.resolved_at is null
            returning l.attempt_no
        )
        insert into public.iu_route_attempt
            (event_ref, route_kind, route_code, status, decision, delivered, idempotency_key, attempt_no, route_count,
             traceparent, created_at, finished_at)
        select g.event_ref, g.route_kind, g.route_code, 'sent', 'delivered', true, g.key, g.attempt_no, g.route_count,
               g.traceparent, v_now - g.began * interval '1 second', v_now - g.ended * interval '1 second'
          from gone g
         -- The count makes the dead letters come before the attempts: the lock order of 024.
         where (select count(*) from resolved) >= 0;
    exception when unique_violation then
        -- Somebody has written an attempt of that number, by hand or by a restore: ours takes the next one.
        update public.iu_route_delivery d
           set attempt_no = (select max(a.attempt_no) + 1
                               from public.iu_route_attempt a
                              where a.idempotency_key = 'outbound:' || d.route_code || ':' || d.event_ref)
          from unnest(p_sent_routes, p_sent_ids) s(route_code, id)
         where d.route_code = s.route_code and d.id = s.id
           and exists (select from public.iu_route_attempt a
                        where a.idempotency_key = 'outbound:' || d.route_code || ':' || d.event_ref
                          and a.attempt_no >= d.attempt_no);
        return public.fn_iu_delivery_settle(
            p_worker_name, p_owner, p_sent_routes, p_sent_ids, p_sent_began, p_sent_ended, p_routes, p_ids, p_results,
            p_began, p_ended, p_codes, p_details, p_retry_after);
    end;

    if cardinality(v_alive) > 0 then
        update public.iu_delivery_breaker x
           set failures = 0, last_id = null, streak_from = null, opened_at = null, probes = 0, probe_at = null,
               probing_id = null, why = null
         where x.route_code = any (v_alive) and (x.failures > 0 or x.opened_at is not null)
           and (x.opened_at is null
                or exists (select from unnest(p_sent_routes, p_sent_ids) s(route_code, id)
                            where s.route_code = x.route_code and s.id = x.probing_id)
                or exists (select from unnest(p_routes, p_ids, p_results) s(route_code, id, result)
                            where s.route_code = x.route_code and s.id = x.probing_id and s.result = 'rejected'));
    end if;

    for f in
        select d.*, s.result, s.began, s.ended, s.code, s.detail, s.retry_after,
               'outbound:' || d.route_code || ':' || d.event_ref as key
          from unnest(p_routes, p_ids, p_results, p_began, p_ended, p_codes, p_details, p_retry_after) with ordinality
               s(route_code, id, result, began, ended, code, detail, retry_after, n)
         cross join lateral (
               select d.*
                 from public.iu_route_delivery d
                where d.route_code = s.route_code and d.id = s.id
                limit 1) d
         order by s.n
    loop
        select public.fn_iu_delivery_policy(coalesce(r.delivery_policy, '{}')) into v_policy
          from (select) one
          left join public.iu_outbound_route r on r.route_code = f.route_code;
        insert into public.iu_delivery_breaker (route_code) values (f.route_code) on conflict do nothing;
        select x.* into b from public.iu_delivery_breaker x where x.route_code = f.route_code for update;

        if f.result <> 'rejected' and f.route_code <> all (v_alive) then
            if b.opened_at is not null then
                if b.probing_id = f.id then
                    b.probes := b.probes + 1;
                    b.probing_id := null;
                    v_pause := least(0.25 * 2 ^ least(b.probes, 20), (v_policy ->> 'probe_max')::double precision)
                               * (0.5 + random() / 2);
                    b.probe_at := v_now + greatest(v_pause, f.retry_after) * interval '1 second';
                    b.why := f.code;
                end if;
            else
                if f.result = 'unavailable' or b.last_id is distinct from f.id then
                    b.failures := b.failures + 1;
                end if;
                b.last_id := f.id;
                b.streak_from := coalesce(b.streak_from, v_now);
                if b.failures >= (v_policy ->> 'breaker')::integer
                   or f.result = 'unavailable' and f.retry_after is not null then
                    b.opened_at := v_now;
                    b.probe_at := v_now + greatest(0.25, f.retry_after) * interval '1 second';
                    b.why := f.code;
                    update public.iu_route_delivery d
                       set tries = d.tries - 1
                     where d.route_code = f.route_code and d.due_at is not null and d.failed_at >= b.streak_from
                       and d.tries > 0 and d.id <> f.id;
                end if;
            end if;
        end if;

        v_spent := f.result = 'failed' and b.opened_at is null;
        v_dead := f.result = 'rejected' or v_spent and f.tries + 1 >= (v_policy ->> 'attempts')::integer;
        if v_dead then
            v_letters := v_letters + 1;
            delete from public.iu_route_delivery d where d.route_code = f.route_code and d.id = f.id;
            insert into public.iu_route_dead_letter
                (worker_name, event_ref, route_kind, route_code, idempotency_key, attempt_no, event_snapshot,
                 failure_code, failure_detail)
            select f.worker_name, f.event_ref, f.route_kind, f.route_code, f.key, f.attempt_no,
                   coalesce((select to_jsonb(o) from public.event_outbox o where o.id = f.event_ref),
                            jsonb_build_object('id', f.event_ref)),
                   f.code, f.detail
            on conflict (idempotency_key) do update
               set resolved_at = null, resolution = null, attempt_no = excluded.attempt_no,
                   failure_code = excluded.failure_code, failure_detail = excluded.failure_detail;
            if (b.letters_from > v_now - interval '1 hour' and b.letters_from <= v_now) is not true then
                b.letters := 0;
                b.letters_from := v_now;
            end if;
            b.letters := b.letters + 1;
            if b.letters >= (v_policy ->> 'dead_letters_per_hour')::integer then
                b.stopped_at := coalesce(b.stopped_at, v_now);
            end if;
        else
            v_pause := case when v_spent
                            then least((v_policy ->> 'backoff')::double precision * 2 ^ least(f.tries, 30),
                                       (v_policy ->> 'backoff_max')::double precision) * (0.5 + random() / 2)
                            else 0 end;
            update public.iu_route_delivery d
               set attempt_no = f.attempt_no + 1, tries = f.tries + v_spent::integer,
                   due_at = v_now + greatest(v_pause, f.retry_after) * interval '1 second',
                   failed_at = v_now, failure_code = f.code, failure_detail = f.detail
             where d.route_code = f.route_code and d.id = f.id;
        end if;
        -- After the delivery and the dead letter: the lock order of 024.
        insert into public.iu_route_attempt
            (event_ref, route_kind, route_code, status, decision, delivered, failure_code, idempotency_key, attempt_no,
             route_count, traceparent, created_at, finished_at)
        values (f.event_ref, f.route_kind, f.route_code, 'failed',
                case when v_dead then 'dead_letter' when v_spent then 'retry' else 'outage' end, false, f.code, f.key,
                f.attempt_no, f.route_count, f.traceparent,
                v_now - f.began * interval '1 second', v_now - f.ended * interval '1 second')
        on conflict (idempotency_key, attempt_no) do nothing;
        update public.iu_delivery_breaker x
           set failures = b.failures, last_id = b.last_id, streak_from = b.streak_from, opened_at = b.opened_at,
               probes = b.probes, probe_at = b.probe_at, probing_id = b.probing_id, why = b.why, letters = b.letters,
               letters_from = b.letters_from, stopped_at = b.stopped_at
         where x.route_code = b.route_code;
    end loop;
    return v_letters;
end
$$;
comment on function public.fn_iu_delivery_settle(
    text, uuid, text[], bigint[], double precision[], double precision[], text[], bigint[], text[], double precision[],
    double precision[], text[], text[], double precision[]) is
    'Renews the lease and writes what came of deliveries, an attempt each: what arrived goes, what failed waits, or becomes '
    'a dead letter. Answers how many of these; null: the lease is not ours any more, and nothing was written.';
