-- The completeness check (command: audit): every event before a cursor must have its attempts.
--
-- kind: repeatable
-- needs: 006, 007, 008, 012, 014, 023, 026, functions/outbox_position, functions/idempotency_key, functions/wake
-- locks: nothing that other sessions use

-- Confirm ------------------------------------------------------------------------------------------------
--
-- A pass finds attempts by keys that it builds from known route codes, so an event whose route was deleted before any
-- pass has met it only seems to lack an attempt. A confirmation reads all attempts, in the order of their ids and in
-- parts, and notes those of the listed events: there is no index on event_ref, because it would cost every batch. Then it
-- judges the listed events, also in parts.
--
-- The attempts up to the highest id at the beginning are read. Those of a listed event that existed when it was listed
-- are among them, because the package never deletes them; those that were written later have the code of a route that
-- exists, or existed at the last page.

-- Reads the next part of the attempts, and notes those of listed events. The planner settings are those of the caller,
-- fn_iu_completeness_page.
create or replace function public.fn_iu_completeness_scan(a public.iu_completeness_pass, p_limit bigint)
returns public.iu_completeness_pass
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_read  bigint;
    v_last  bigint;
    v_codes text[];
begin
    with part as materialized (
        select x.id, x.event_ref, x.route_code, x.attempt_no, x.route_kind
          from public.iu_route_attempt x
         where x.id > a.scan_id and x.id <= a.scan_until
         order by x.id
         limit p_limit
    ), proof as materialized (
        select p.event_ref, array_agg(p.id) as ids, array_agg(p.route_code) as codes
          from part p
         cross join lateral (
               select m.event_ref
                 from public.iu_completeness_missing m
                where m.worker_name = a.worker_name and m.event_ref = p.event_ref and m.accepted_at is null
                limit 1) m
         where p.attempt_no = 1 and p.route_kind = 'outbound'
         group by p.event_ref
    ), noted as (
        update public.iu_completeness_missing m
           set seen = array(select unnest(m.seen) union select unnest(p.ids))
          from proof p
         where m.worker_name = a.worker_name and m.event_ref = p.event_ref
    )
    select (select count(*) from part), (select x.id from part x order by x.id desc limit 1),
           array(select distinct c.code from proof p cross join lateral unnest(p.codes) c(code))
      into v_read, v_last, v_codes;
    a.codes := array(select unnest(a.codes) union select unnest(v_codes));
    a.scan_id := coalesce(v_last, a.scan_id);
    if v_read < p_limit then
        a.scan_ref := '00000000-0000-0000-0000-000000000000';
    end if;
    return a;
end
$$;
comment on function public.fn_iu_completeness_scan(public.iu_completeness_pass, bigint) is
    'Reads the next p_limit attempts, notes those of listed events, and answers the state of the pass after them.';

-- Judges the next listed events. An event is complete when it has as many first attempts as its decision consisted of
-- (route_count), and at least one if that was not counted. A dead letter with attempt_no 0 replaces an attempt that could
-- not be written; a pending delivery with attempt_no 1 replaces an attempt that is still to come.
--
-- An event is judged in one statement, so its cursor and its attempts are seen at one moment. Each attempt is looked up by
-- its id or its key, so an attempt that was deleted since it was read does not count.
create or replace function public.fn_iu_completeness_judge(a public.iu_completeness_pass, p_limit bigint)
returns public.iu_completeness_pass
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_read    bigint;
    v_last    uuid;
    v_missing bigint;
    v_codes   text[];
begin
    with listed as materialized (
        select m.event_ref, m.seen
          from public.iu_completeness_missing m
         where m.worker_name = a.worker_name and m.accepted_at is null and m.event_ref > a.scan_ref
         order by m.event_ref
         limit p_limit
    ), verdict as materialized (
        select l.event_ref, o.id is null as gone,
               public.fn_iu_outbox_consumed(c, o.xact_id, o.event_seq, o.id) as consumed, t.found,
               greatest(t.wanted, 1) as wanted
          from listed l
          join public.iu_route_worker_cursor c on c.worker_name = a.worker_name
          left join lateral (
               select e.id, e.xact_id, e.event_seq
                 from public.event_outbox e
                where e.id = l.event_ref and e.event_domain = c.event_domain
                limit 1) o on true
         cross join lateral (
               select count(*) as found, max(p.route_count) as wanted
                 from (select x.id, x.route_count
                         from public.iu_route_attempt x
                        where x.id = any (l.seen) and x.attempt_no = 1 and x.route_kind = 'outbound'
                        union
                       select x.id, x.route_count
                         from unnest(a.codes) k(route_code)
                        cross join lateral (
                              select y.id, y.route_count, y.route_kind
                                from public.iu_route_attempt y
                               where y.idempotency_key = public.fn_iu_idempotency_key(k.route_code, l.event_ref)
                                 and y.attempt_no = 1
                               limit 1) x
                        where x.route_kind = 'outbound'
                        union all
                       select null, null from public.iu_route_dead_letter d
                        where d.event_ref = l.event_ref and d.attempt_no = 0
                        union all
                       select null, d.route_count from public.iu_route_delivery d
                        where d.event_ref = l.event_ref and d.attempt_no = 1) p) t
    ), cleared as (
        delete from public.iu_completeness_missing m
         using verdict v
         where m.worker_name = a.worker_name and m.event_ref = v.event_ref
           and (v.gone or (v.consumed and v.found >= v.wanted))
    ), confirmed as (
        update public.iu_completeness_missing m
           set found = v.found, wanted = v.wanted, confirmed_at = clock_timestamp(), restamped_at = null
          from verdict v
         where m.worker_name = a.worker_name and m.event_ref = v.event_ref
           and v.consumed and v.found < v.wanted
        returning 1
    )
    select (select count(*) from listed), (select l.event_ref from listed l order by l.event_ref desc limit 1),
           (select count(*) from confirmed),
           array(select d.route_code
                   from listed l
                   join public.iu_route_dead_letter d on d.event_ref = l.event_ref and d.attempt_no = 0)
      into v_read, v_last, v_missing, v_codes;
    a.codes := array(select unnest(a.codes) union select unnest(v_codes));
    a.scan_ref := coalesce(v_last, a.scan_ref);
    a.scan_missing := a.scan_missing + v_missing;
    if v_read < p_limit then
        a.suspects := 0;
        a.missing := a.scan_missing;
        a.scan_id := null;
        a.scan_until := null;
        a.scan_ref := null;
        a.scan_missing := null;
    end if;
    return a;
end
$$;
comment on function public.fn_iu_completeness_judge(public.iu_completeness_pass, bigint) is
    'Judges the next p_limit listed events by their attempts: removes events that are complete or deleted, and confirms '
    'the others. Answers the state of the pass after them.';

-- For a command, after a repair: the listed events are judged again, in one transaction. No attempt is read anew: those of
-- unknown routes were noted by the pass before, and a repair makes decisions of routes that exist.
create or replace function public.fn_iu_completeness_confirm(p_worker_name text)
returns jsonb
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
    a public.iu_completeness_pass;
begin
    a.worker_name := p_worker_name;
    a.codes := array(select unnest(x.codes) from public.iu_completeness_pass x where x.worker_name = p_worker_name
                     union select r.route_code from public.iu_outbound_route r
                     union select '(none)');
    a.scan_id := 0;
    a.scan_ref := '00000000-0000-0000-0000-000000000000';
    a.scan_missing := 0;
    while a.scan_id is not null loop
        a := public.fn_iu_completeness_judge(a, 5000);
    end loop;
    return jsonb_build_object('missing', a.missing, 'codes', a.codes);
end
$$;
comment on function public.fn_iu_completeness_confirm(text) is
    'Judges each listed event of a worker again, by the attempts that the last pass has noted and those of known routes: '
    'removes events that are complete or deleted, and confirms the others. Answers the number of incomplete events, and '
    'the route codes by which it has searched.';

-- The beginning and one page of a pass -------------------------------------------------------------------

-- The state of a pass that begins now. Its caller stores it.
create or replace function public.fn_iu_completeness_begin(a public.iu_completeness_pass, p_event_domain text)
returns public.iu_completeness_pass
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    a.pass := a.pass + 1;
    a.started_at := clock_timestamp();
    a.pos_seq := null;
    a.pos_id := null;
    a.walked := false;
    a.checked := 0;
    a.suspects := 0;
    a.near := 0;
    a.width := 125;
    a.scan_id := null;
    a.scan_until := null;
    a.scan_ref := null;
    a.scan_missing := null;
    -- Events that earlier passes found incomplete are confirmed again, because they may be complete now.
    -- Until then their number is known up to 10 001.
    select count(*) into a.missing
      from (select from public.iu_completeness_missing m
             where m.worker_name = a.worker_name and m.accepted_at is null
             limit 10001) x;
    select o.event_seq into a.from_seq from public.event_outbox o
     where o.event_domain = p_event_domain order by o.event_seq, o.id limit 1;
    select o.event_seq into a.until_seq from public.event_outbox o
     where o.event_domain = p_event_domain order by o.event_seq desc, o.id desc limit 1;
    return a;
end
$$;
comment on function public.fn_iu_completeness_begin(public.iu_completeness_pass, text) is
    'The state of a new pass of the completeness check, from the first to the last event of the domain.';

-- Checks one page, and answers the state of the pass after it. Its caller stores the state. The planner settings are those
-- of the caller, fn_iu_completeness_page.
create or replace function public.fn_iu_completeness_walk(
    a public.iu_completeness_pass, p_event_domain text, p_limit integer)
returns public.iu_completeness_pass
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_first_id constant uuid := '00000000-0000-0000-0000-000000000000';
    v_page     bigint;
    v_checked  bigint;
    v_short    uuid[];
    v_last_seq bigint;
    v_last_id  uuid;
    v_from     constant tid := format('(%s,0)', greatest(a.near - 4, 0));
    v_to       constant tid := format('(%s,0)', a.near + 8 + least(4096, a.width * p_limit / 800));
    v_place    tid;
    v_step     bigint;
    v_added    bigint;
begin
    with page as materialized (
        select o.id, o.event_seq, o.xact_id
          from public.event_outbox o
         where o.event_domain = p_event_domain
           and (o.event_seq, o.id) > (coalesce(a.pos_seq, -9223372036854775808), coalesce(a.pos_id, v_first_id))
           and o.event_seq <= a.until_seq
         order by o.event_seq, o.id
         limit p_limit
    ), near as materialized (
        select x.event_ref, x.route_count, x.ctid as place
          from public.iu_route_attempt x
         where x.ctid >= v_from and x.ctid < v_to and x.attempt_no = 1 and x.route_kind = 'outbound'
    ), judged as materialized (
        select u.id, max(u.event_seq) as event_seq, bool_or(u.consumed) as consumed, count(u.place) as found,
               greatest(max(u.route_count), 1) as wanted, max(u.place) as place
          from (select p.id, p.event_seq, null::smallint as route_count, null::tid as place,
                       public.fn_iu_outbox_consumed(w, p.xact_id, p.event_seq, p.id) as consumed
                  from page p
                  join public.iu_route_worker_cursor w on w.worker_name = a.worker_name
                union all
                select n.event_ref, null, n.route_count, n.place, null from near n) u
         group by u.id
        having count(u.event_seq) > 0
    )
    select (select count(*) from page), count(*) filter (where j.consumed),
           array_agg(j.id) filter (where j.consumed and j.found < j.wanted),
           (array_agg(j.event_seq order by j.event_seq, j.id))[count(*)],
           (array_agg(j.id order by j.event_seq, j.id))[count(*)],
           (array_agg(j.place order by j.event_seq, j.id))[count(*)]
      into v_page, v_checked, v_short, v_last_seq, v_last_id, v_place
      from judged j;

    if v_short is not null then
        with probed as materialized (
            select e.id, t.found, t.wanted, t.place
              from unnest(v_short) e(id)
             cross join lateral (
                   select count(coalesce(x.event_ref, d.event_ref, v.event_ref)) as found,
                          greatest(max(x.route_count), max(v.route_count), 1) as wanted, max(x.ctid) as place
                     from unnest(a.codes) k(route_code)
                     left join public.iu_route_attempt x
                       on x.idempotency_key = public.fn_iu_idempotency_key(k.route_code, e.id) and x.attempt_no = 1
                     left join public.iu_route_dead_letter d
                       on d.idempotency_key = public.fn_iu_idempotency_key(k.route_code, e.id) and d.attempt_no = 0
                     left join public.iu_route_delivery v
                       on v.event_ref = e.id and v.route_code = k.route_code and v.attempt_no = 1) t
        ), added as (
            insert into public.iu_completeness_missing (worker_name, event_ref)
            select a.worker_name, p.id from probed p where p.found < p.wanted
            on conflict (worker_name, event_ref) do nothing
            returning 1)
        select (select count(*) from added), coalesce(v_place, (select p.place from probed p where p.id = v_last_id))
          into v_added, v_place;
        a.suspects := a.suspects + v_added;
    end if;

    -- The blocks in which the attempts of the next page are expected, and their number. Page sizes differ, because
    -- each caller chooses its own.
    if v_place is not null then
        v_step := split_part(ltrim(v_place::text, '('), ',', 1)::bigint - a.near;
        a.near := a.near + v_step;
        a.width := case when v_step >= 0 then v_step * 1000 / v_page + 1 else 125 end;
    end if;
    a.checked := a.checked + v_checked;
    a.pos_seq := coalesce(v_last_seq, a.pos_seq);
    a.pos_id := coalesce(v_last_id, a.pos_id);
    a.walked := v_page < p_limit;
    return a;
end
$$;
comment on function public.fn_iu_completeness_walk(public.iu_completeness_pass, text, integer) is
    'Checks whether the next p_limit events of a pass have their attempts, lists those that lack some as suspected, and '
    'answers the state of the pass after them.';

-- Pass ---------------------------------------------------------------------------------------------------
--
-- A pass reads the outbox in the order of event_seq, one page at a time, from the lowest to the highest number at its
-- beginning. Its position is stored in iu_completeness_pass, so a pass survives the end of its caller. Each page is one statement,
-- so the cursor and the attempts are seen at one moment: a decision commits both, so no event that is being decided
-- appears to be incomplete. An event with a low number that commits behind the position is left to the next pass.
--
--   * Attempts are written in about the order in which events are read. So the attempts of a page are expected in a few
--     blocks of iu_route_attempt near those of the previous page; reading these blocks at once is much faster than
--     searching by key. This is a guess. If it fails, the events are looked up one by one through
--     iu_route_attempt_key_unique, by every route code that any pass has met, and the next guess starts there.
--   * An event with too few attempts is then suspected, and confirmed at the end of the pass, in one scan for all. If
--     there are many, the confirmation comes earlier: a deleted route that no pass has met would make all its events
--     suspected, and the confirmation learns its code. The groups grow with the number of confirmed events, so many
--     incomplete events are confirmed a few times, not a thousand times. A confirmation is done in pages, too: it reads
--     twenty attempts for each event of the page, or judges as many events as a page has.
--   * p_pass names the pass: null continues the running pass, or begins one; 0 always begins one; a number continues
--     only the pass with that number. So two concurrent callers share the work, and a caller that begins a new pass is
--     not confused with the other one.
create or replace function public.fn_iu_completeness_page(
    p_worker_name text, p_limit integer default 5000, p_pass bigint default null)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
set max_parallel_workers_per_gather = 0
set jit = off
as $$
declare
    c           public.iu_route_worker_cursor;
    a           public.iu_completeness_pass;
    v_refusal   text;
    v_confirmed boolean := false;
begin
    if p_limit is null or p_limit < 1 then
        raise exception 'page limit must be 1 or more, not %', coalesce(p_limit::text, 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    select w.* into c from public.iu_route_worker_cursor w where w.worker_name = p_worker_name;
    if not found then
        raise exception 'worker % is not registered', p_worker_name
            using errcode = 'no_data_found', hint = 'Registered workers: iu-listen cursor show';
    end if;
    -- A cursor that is not believed says nothing about the events before it.
    v_refusal := public.fn_iu_outbox_refusal(c.lineage, c.prev);
    if v_refusal is not null then
        return jsonb_build_object('status', 'refused', 'reason', v_refusal, 'worker_name', p_worker_name);
    end if;

    -- One caller at a time; the next one continues where this page ends.
    insert into public.iu_completeness_pass (worker_name) values (p_worker_name) on conflict (worker_name) do nothing;
    select x.* into a from public.iu_completeness_pass x where x.worker_name = p_worker_name for update;
    if p_pass > 0 and p_pass <> a.pass then
        return jsonb_build_object('status', 'superseded', 'worker_name', p_worker_name, 'pass', p_pass);
    end if;
    if (a.started_at is null and p_pass is null) or p_pass = 0 then
        a := public.fn_iu_completeness_begin(a, c.event_domain);
    end if;
    a.codes := array(select unnest(a.codes)
                     union select r.route_code from public.iu_outbound_route r where r.event_domain = c.event_domain
                     union select '(none)');

    if a.started_at is null then
        -- Another caller has ended this pass.
        null;
    elsif a.scan_ref is not null then
        a := public.fn_iu_completeness_judge(a, p_limit);
        v_confirmed := a.scan_id is null;
    elsif a.scan_id is null and not a.walked and a.suspects < 10000 + a.missing then
        a := public.fn_iu_completeness_walk(a, c.event_domain, p_limit);
    else
        if a.scan_id is null then
            a.scan_id := 0;
            a.scan_until := coalesce((select x.id from public.iu_route_attempt x order by x.id desc limit 1), 0);
            a.scan_missing := 0;
        end if;
        a := public.fn_iu_completeness_scan(a, 20 * p_limit::bigint);
    end if;

    if a.started_at is not null and a.walked and (v_confirmed or a.suspects + a.missing = 0) then
        a.finished_at := clock_timestamp();
        a.last_checked := a.checked;
        a.last_seconds := extract(epoch from a.finished_at - a.started_at);
        a.started_at := null;
        a.pos_seq := null;
        a.pos_id := null;
    end if;
    update public.iu_completeness_pass x
       set pass = a.pass, started_at = a.started_at, pos_seq = a.pos_seq, pos_id = a.pos_id, from_seq = a.from_seq,
           until_seq = a.until_seq, walked = a.walked, checked = a.checked, suspects = a.suspects,
           missing = a.missing, near = a.near, width = a.width, codes = a.codes, scan_id = a.scan_id,
           scan_until = a.scan_until, scan_ref = a.scan_ref, scan_missing = a.scan_missing,
           finished_at = a.finished_at, last_checked = a.last_checked, last_seconds = a.last_seconds,
           paged_at = clock_timestamp()
     where x.worker_name = p_worker_name;

    return jsonb_build_object(
        'status', case when a.started_at is null then 'passed'
                       when v_confirmed or a.scan_id is not null or a.walked then 'confirming' else 'walking' end,
        'worker_name', p_worker_name, 'pass', a.pass, 'checked', a.checked, 'missing', a.missing + a.suspects,
        'share', case when a.walked then 1
                      else (a.pos_seq - a.from_seq + 1.0) / (a.until_seq - a.from_seq + 1) end,
        'seconds', coalesce(extract(epoch from clock_timestamp() - a.started_at), a.last_seconds));
end
$$;
comment on function public.fn_iu_completeness_page(text, integer, bigint) is
    'Checks whether the next page of events before a worker''s cursor have their attempts, and stores the position. '
    'Answers the status: walking, confirming, passed (the pass has ended), superseded (another pass was begun) or '
    'refused (the cursor is not believed).';

-- Incomplete events, and the effect of a new decision ----------------------------------------------------
create or replace view public.v_iu_completeness_missing as
select m.worker_name, m.event_ref, o.event_domain, o.event_type, o.event_stream, o.event_seq, m.found, m.wanted,
       m.found_at, m.restamped_at, m.accepted_at,
       not public.fn_iu_outbox_consumed(c, o.xact_id, o.event_seq, o.id) as waiting,
       -- Whether a decision made now would write an attempt that is missing.
       exists (
           select from (select r.route_code
                          from public.iu_outbound_route r
                         where r.event_domain = o.event_domain and r.event_type = o.event_type
                           and r.event_stream = o.event_stream and r.enabled
                        union all
                        select '(none)'
                         where not exists (select from public.iu_outbound_route r
                                            where r.event_domain = o.event_domain and r.event_type = o.event_type
                                              and r.event_stream = o.event_stream and r.enabled)) k
            where not exists (select from public.iu_route_attempt a
                               where a.idempotency_key = public.fn_iu_idempotency_key(k.route_code, o.id)
                                 and a.attempt_no = 1)) as repairable
  from public.iu_completeness_missing m
  join public.iu_route_worker_cursor c on c.worker_name = m.worker_name
  join public.event_outbox o on o.id = m.event_ref
 where m.confirmed_at is not null;
comment on view public.v_iu_completeness_missing is
    'Events that lack attempts, confirmed: how many they have and should have, whether they wait to be decided again, '
    'and whether a decision made now would write the missing attempts.';

-- The incomplete events are counted in a left join, which the planner leaves out for a query that does not use the counts.
create or replace view public.v_iu_completeness as
select c.worker_name, a.finished_at, a.last_checked as checked, a.last_seconds as seconds, m.missing, m.accepted,
       a.started_at, a.checked as checked_so_far
  from public.iu_route_worker_cursor c
  left join public.iu_completeness_pass a on a.worker_name = c.worker_name
  left join lateral (
       select count(*) filter (where x.accepted_at is null) as missing,
              count(*) filter (where x.accepted_at is not null) as accepted
         from public.iu_completeness_missing x
        where x.worker_name = c.worker_name and x.confirmed_at is not null) m on true;
comment on view public.v_iu_completeness is
    'The last completeness check of each worker: when it ended, how many events it checked, and how many lack '
    'attempts; and the running one.';

-- Repair -------------------------------------------------------------------------------------------------

-- An event that lacks an attempt gets a new position, as if it were written now. So it lies after every cursor of its
-- domain and is decided in the ordinary way; idempotency keys suppress the decisions that were already made. The events
-- are repaired in the order of their old positions, so the events of a subject keep their order among themselves, but
-- come after those events of the subject that were not missing (docs/why/completeness.md).
--
-- If a decision made now would write no new attempt, because a route is disabled or deleted, a new position would have
-- no effect. Such an event is accepted as it is.
create or replace function public.fn_iu_completeness_repair(p_worker_name text, p_limit integer default 1000)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    v_event     record;
    v_seen      bigint := 0;
    v_restamped bigint := 0;
    v_accepted  bigint := 0;
begin
    if p_limit is null or p_limit < 1 then
        raise exception 'limit must be 1 or more, not %', coalesce(p_limit::text, 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    for v_event in
        select v.event_ref, v.repairable
          from public.v_iu_completeness_missing v
         -- An event that was moved already may have been decided since; the next confirmation decides.
         where v.worker_name = p_worker_name and v.accepted_at is null and v.restamped_at is null and not v.waiting
         order by v.event_seq, v.event_ref
         limit p_limit
    loop
        v_seen := v_seen + 1;
        if v_event.repairable then
            update public.event_outbox o
               set xact_id = pg_current_xact_id(), event_seq = nextval('public.event_outbox_event_seq')
             where o.id = v_event.event_ref;
            update public.iu_completeness_missing m set restamped_at = now()
             where m.worker_name = p_worker_name and m.event_ref = v_event.event_ref;
            v_restamped := v_restamped + 1;
        else
            update public.iu_completeness_missing m set accepted_at = now()
             where m.worker_name = p_worker_name and m.event_ref = v_event.event_ref;
            v_accepted := v_accepted + 1;
        end if;
    end loop;
    -- An update does not ring the bell, and an idle consumer would report these events as a lost notification.
    if v_restamped > 0 and pg_notification_queue_usage() < 0.5 then
        perform public.fn_iu_ring_consumers();
    end if;
    return jsonb_build_object('restamped', v_restamped, 'accepted', v_accepted, 'more', v_seen = p_limit);
end
$$;
comment on function public.fn_iu_completeness_repair(text, integer) is
    'Gives the next p_limit events that lack attempts a new position after the cursor, in order; accepts those that a '
    'decision made now could not complete. Answers both numbers, and whether there may be more.';
