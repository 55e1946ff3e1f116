-- Is everything there? The audit of completeness: every event behind a cursor has its attempts.
--
-- needs: 006, 007, 008, 013
-- locks: nothing that exists

-- State --------------------------------------------------------------------------------------------------

create table public.iu_audit (
    worker_name   text         not null,
    pass          bigint       not null default 0,
    started_at    timestamptz,
    pos_seq       bigint,
    pos_id        uuid,
    from_seq      bigint,
    until_seq     bigint,
    walked        boolean      not null default false,
    checked       bigint       not null default 0,
    suspects      bigint       not null default 0,
    missing       bigint       not null default 0,
    near          bigint       not null default 0,
    width         bigint       not null default 0,
    codes         text[]       not null default '{}',
    paged_at      timestamptz,
    finished_at   timestamptz,
    last_checked  bigint,
    last_seconds  double precision,

    constraint iu_audit_pkey primary key (worker_name),
    constraint iu_audit_pos_chk check ((pos_seq is null) = (pos_id is null) and (started_at is not null or pos_seq is null))
)
-- The row is updated by every page; room on the page keeps those updates HOT.
with (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

comment on table public.iu_audit is 'The audit of each worker: the pass that is running, and the last one that ended.';
comment on column public.iu_audit.worker_name is 'Name of the worker.';
comment on column public.iu_audit.pass is 'Number of the pass that is running, else of the last one.';
comment on column public.iu_audit.started_at is 'When the running pass began. Null: none is running.';
comment on column public.iu_audit.pos_seq is 'event_seq of the last event that the running pass has looked at.';
comment on column public.iu_audit.pos_id is 'Id of that event.';
comment on column public.iu_audit.from_seq is 'Lowest event_seq when the running pass began.';
comment on column public.iu_audit.until_seq is 'Highest event_seq when the running pass began: there it ends.';
comment on column public.iu_audit.walked is 'True: the running pass has looked at every event, and has only to confirm what seemed to be missing.';
comment on column public.iu_audit.checked is 'Events behind the cursor that the running pass has looked at.';
comment on column public.iu_audit.suspects is 'Events that seem to be incomplete since the last confirmation.';
comment on column public.iu_audit.missing is 'Incomplete events at the last confirmation, those that were accepted left out.';
comment on column public.iu_audit.near is 'Block of iu_route_attempt near which the attempts of the next page are expected.';
comment on column public.iu_audit.width is 'Over how many blocks the attempts of 1 000 events reach there.';
comment on column public.iu_audit.codes is 'Every route that a pass has ever met: attempts are found by their keys, also those of routes that are gone.';
comment on column public.iu_audit.paged_at is 'When the last page was looked at. Null: none ever was.';
comment on column public.iu_audit.finished_at is 'When the last pass ended. Null: none ever did.';
comment on column public.iu_audit.last_checked is 'Events that the last pass looked at.';
comment on column public.iu_audit.last_seconds is 'How long the last pass took, its pauses included.';
comment on constraint iu_audit_pkey on public.iu_audit is 'One audit a worker.';
comment on constraint iu_audit_pos_chk on public.iu_audit is 'A position exists only in a running pass.';

create table public.iu_audit_missing (
    worker_name   text         not null,
    event_ref     uuid         not null,
    found         bigint,
    wanted        bigint,
    found_at      timestamptz  not null default now(),
    confirmed_at  timestamptz,
    restamped_at  timestamptz,
    accepted_at   timestamptz,

    constraint iu_audit_missing_pkey primary key (worker_name, event_ref)
);

comment on table public.iu_audit_missing is
    'Events behind the cursor of a worker that lack attempts. A row goes when its event is complete, or is gone itself.';
comment on column public.iu_audit_missing.worker_name is 'Name of the worker.';
comment on column public.iu_audit_missing.event_ref is 'The event. No foreign key: the log may be pruned.';
comment on column public.iu_audit_missing.found is 'First attempts that it has.';
comment on column public.iu_audit_missing.wanted is 'First attempts that it should have.';
comment on column public.iu_audit_missing.found_at is 'When an audit first noticed.';
comment on column public.iu_audit_missing.confirmed_at is 'When that was last confirmed. Null: a suspicion.';
comment on column public.iu_audit_missing.restamped_at is
    'When it was put before the cursor again, to be decided once more. Null: never, or judged since.';
comment on column public.iu_audit_missing.accepted_at is 'When somebody took it as it is: it is listed, and alarms no more.';
comment on constraint iu_audit_missing_pkey on public.iu_audit_missing is 'An event is missing once.';

-- Confirm ------------------------------------------------------------------------------------------------

-- The walk finds attempts by keys that it builds; whoever it suspects is judged here, by the event itself, in one
-- reading of the audit: there is no index on event_ref, and one would cost every batch. Attempts are never taken away
-- by us, so what an event had when it was suspected is visible now.
--
-- An event is complete when it has as many first attempts as its decision consisted of; at least one where that was
-- not counted. A dead letter stands for an attempt that could not be written (attempt_no 0), a delivery for one that is
-- still to come.
create function public.fn_iu_audit_confirm(p_worker_name text)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
-- fn_iu_audit_page, which calls this, wants them otherwise; and one of them changes midway.
set plan_cache_mode = force_custom_plan
set enable_seqscan = on
set enable_bitmapscan = on
set enable_hashjoin = on
set enable_nestloop = on
set jit = off
as $$
declare
    v_refs     uuid[];
    v_gone     boolean[];
    v_consumed boolean[];
    v_missing  bigint;
    v_codes    text[];
begin
    select array_agg(m.event_ref), array_agg(o.id is null),
           array_agg(public.fn_iu_outbox_consumed(c, o.xact_id, o.event_seq, o.id))
      into v_refs, v_gone, v_consumed
      from public.iu_audit_missing m
      join public.iu_route_worker_cursor c on c.worker_name = m.worker_name
      left join public.event_outbox o on o.id = m.event_ref and o.event_domain = c.event_domain
     where m.worker_name = p_worker_name and m.accepted_at is null;

    -- Few suspects or many: the audit is read once, against a hash of them, and never once for each.
    perform set_config('enable_nestloop', 'off', true);
    with suspects as materialized (
        select s.event_ref, s.gone, s.consumed from unnest(v_refs, v_gone, v_consumed) s(event_ref, gone, consumed)
    ), proof as materialized (
        select a.event_ref, a.route_code, a.route_count
          from public.iu_route_attempt a
          join suspects s on s.event_ref = a.event_ref
         where a.attempt_no = 1 and a.route_kind = 'outbound'
        union all
        select d.event_ref, d.route_code, null
          from public.iu_route_dead_letter d
          join suspects s on s.event_ref = d.event_ref
         where d.attempt_no = 0
        union all
        select d.event_ref, d.route_code, d.route_count
          from public.iu_route_delivery d
          join suspects s on s.event_ref = d.event_ref
         where d.attempt_no = 1
    ), verdict as materialized (
        select s.event_ref, s.gone, s.consumed, count(p.event_ref) as found,
               greatest(max(p.route_count), 1) as wanted
          from suspects s
          left join proof p on p.event_ref = s.event_ref
         group by s.event_ref, s.gone, s.consumed
    ), cleared as (
        delete from public.iu_audit_missing m
         using verdict v
         where m.worker_name = p_worker_name and m.event_ref = v.event_ref
           and (v.gone or (v.consumed and v.found >= v.wanted))
    ), confirmed as (
        update public.iu_audit_missing m
           set found = v.found, wanted = v.wanted, confirmed_at = clock_timestamp(), restamped_at = null
          from verdict v
         where m.worker_name = p_worker_name and m.event_ref = v.event_ref
           and v.consumed and v.found < v.wanted
        returning m.event_ref
    )
    select (select count(*) from confirmed), array(select distinct p.route_code from proof p)
      into v_missing, v_codes;
    return jsonb_build_object('missing', v_missing, 'codes', v_codes);
end
$$;
comment on function public.fn_iu_audit_confirm(text) is
    'Judges every event that is listed as missing by the audit itself: what is complete, or gone, is struck off. Reads '
    'the whole audit once.';

-- Walk ---------------------------------------------------------------------------------------------------
--
-- A pass goes through the log in order of event_seq, from the lowest to the highest number that there is when it
-- begins, a page at a time; where it is stands in iu_audit, so a pass survives whoever runs it. Each page is one
-- statement, so cursor and attempts are seen at one moment: a decision commits both, and nothing in flight is missing.
-- An event with a low number that commits behind the position is the next pass's.
--
--   * Attempts are written in about the order in which events are read. So those of a page are looked for in a few
--     blocks of the audit, near those of the page before it: read in one go, that is ten times as fast as by key.
--     Only a guess: where it fails, events are looked up one by one through iu_route_attempt_key_unique, by every
--     route that any pass has ever met, and the next guess begins there.
--   * Whoever is short then is suspected, and confirmed at the end of the pass: one reading of the audit for all of
--     them. If they are many it comes earlier, because a route that is gone, and that no pass has met, would have
--     all its events suspected; the confirmation learns its name. Groups grow with what is confirmed, so a real
--     disaster is confirmed a few times and not a thousand times.
--   * p_pass says which pass is meant: null goes on with the one that is running, or begins one; 0 begins one in any
--     case; a number goes on with that one only. So two who audit at once share the work, and one who begins anew is
--     not mistaken for the other.
create function public.fn_iu_audit_page(
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
    a           public.iu_audit;
    v_refusal   text;
    v_first_id  constant uuid := '00000000-0000-0000-0000-000000000000';
    v_page      bigint;
    v_checked   bigint;
    v_short     uuid[];
    v_last_seq  bigint;
    v_last_id   uuid;
    v_from      tid;
    v_to        tid;
    v_place     tid;
    v_step      bigint;
    v_added     bigint;
    v_confirm   jsonb;
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
    -- A cursor that is not believed tells nothing about what is behind it.
    v_refusal := public.fn_iu_outbox_refusal(c.lineage, c.prev);
    if v_refusal is not null then
        return jsonb_build_object('status', 'refused', 'reason', v_refusal, 'worker_name', p_worker_name);
    end if;

    -- One at a time: whoever calls next goes on where this page ends.
    insert into public.iu_audit (worker_name) values (p_worker_name) on conflict (worker_name) do nothing;
    select x.* into a from public.iu_audit x where x.worker_name = p_worker_name for update;
    if p_pass > 0 and p_pass <> a.pass then
        return jsonb_build_object('status', 'superseded', 'worker_name', p_worker_name, 'pass', p_pass);
    end if;
    if (a.started_at is null and p_pass is null) or p_pass = 0 then
        a.pass := a.pass + 1;
        a.started_at := clock_timestamp();
        a.pos_seq := null;
        a.pos_id := null;
        a.walked := false;
        a.checked := 0;
        a.suspects := 0;
        a.near := 0;
        a.width := 125;
        -- What older passes found missing is asked about again: it may be complete by now.
        select count(*) into a.missing
          from public.iu_audit_missing m where m.worker_name = p_worker_name and m.accepted_at is null;
        select o.event_seq into a.from_seq from public.event_outbox o
         where o.event_domain = c.event_domain order by o.event_seq, o.id limit 1;
        select o.event_seq into a.until_seq from public.event_outbox o
         where o.event_domain = c.event_domain order by o.event_seq desc, o.id desc limit 1;
    end if;
    a.codes := array(select unnest(a.codes)
                     union select r.route_code from public.iu_outbound_route r where r.event_domain = c.event_domain
                     union select '(none)');

    if a.started_at is null then
        -- Somebody else has ended the pass that is meant.
        null;
    elsif not a.walked and a.suspects < 10000 + a.missing then
        v_from := format('(%s,0)', greatest(a.near - 4, 0));
        v_to := format('(%s,0)', a.near + 8 + least(4096, a.width * p_limit / 800));
        with page as materialized (
            select o.id, o.event_seq, o.xact_id
              from public.event_outbox o
             where o.event_domain = c.event_domain
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
                      join public.iu_route_worker_cursor w on w.worker_name = p_worker_name
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
                           on x.idempotency_key = 'outbound:' || k.route_code || ':' || e.id and x.attempt_no = 1
                         left join public.iu_route_dead_letter d
                           on d.idempotency_key = 'outbound:' || k.route_code || ':' || e.id and d.attempt_no = 0
                         left join public.iu_route_delivery v
                           on v.event_ref = e.id and v.route_code = k.route_code and v.attempt_no = 1) t
            ), added as (
                insert into public.iu_audit_missing (worker_name, event_ref)
                select p_worker_name, p.id from probed p where p.found < p.wanted
                on conflict (worker_name, event_ref) do nothing
                returning 1)
            select (select count(*) from added), coalesce(v_place, (select p.place from probed p where p.id = v_last_id))
              into v_added, v_place;
            a.suspects := a.suspects + v_added;
        end if;

        -- Where the attempts of the next page are likely to be, and how far they reach: pages differ in size, because
        -- whoever calls may want other ones than who called before.
        if v_place is not null then
            v_step := split_part(ltrim(v_place::text, '('), ',', 1)::bigint - a.near;
            a.near := a.near + v_step;
            a.width := case when v_step >= 0 then v_step * 1000 / v_page + 1 else 125 end;
        end if;
        a.checked := a.checked + v_checked;
        a.pos_seq := coalesce(v_last_seq, a.pos_seq);
        a.pos_id := coalesce(v_last_id, a.pos_id);
        a.walked := v_page < p_limit;
    else
        v_confirm := public.fn_iu_audit_confirm(p_worker_name);
        a.suspects := 0;
        a.missing := (v_confirm ->> 'missing')::bigint;
        a.codes := array(select unnest(a.codes) union select jsonb_array_elements_text(v_confirm -> 'codes'));
        v_confirmed := true;
    end if;

    if a.started_at is not null and a.walked and (v_confirmed or a.suspects + a.missing = 0) then
        a.finished_at := clock_timestamp();
        a.last_checked := a.checked;
        a.last_seconds := extract(epoch from a.finished_at - a.started_at);
        a.started_at := null;
        a.pos_seq := null;
        a.pos_id := null;
    end if;
    update public.iu_audit x
       set pass = a.pass, started_at = a.started_at, pos_seq = a.pos_seq, pos_id = a.pos_id, from_seq = a.from_seq,
           until_seq = a.until_seq, walked = a.walked, checked = a.checked, suspects = a.suspects,
           missing = a.missing, near = a.near, width = a.width, codes = a.codes,
           finished_at = a.finished_at, last_checked = a.last_checked, last_seconds = a.last_seconds,
           paged_at = clock_timestamp()
     where x.worker_name = p_worker_name;

    return jsonb_build_object(
        'status', case when a.started_at is null then 'passed'
                       when v_confirmed or a.walked then 'confirming' else 'walking' end,
        'worker_name', p_worker_name, 'pass', a.pass, 'checked', a.checked, 'missing', a.missing + a.suspects,
        'share', case when a.walked then 1
                      else (a.pos_seq - a.from_seq + 1.0) / (a.until_seq - a.from_seq + 1) end,
        'seconds', coalesce(extract(epoch from clock_timestamp() - a.started_at), a.last_seconds));
end
$$;
comment on function public.fn_iu_audit_page(text, integer, bigint) is
    'Looks whether the next page of events behind a worker''s cursor have their attempts, and remembers where it is. '
    'Answers walking, confirming, passed (the pass has ended), superseded (another one was begun) or refused (the '
    'cursor is not believed).';

-- What is missing, and what would come of it -------------------------------------------------------------

create view public.v_iu_audit_missing as
select m.worker_name, m.event_ref, o.event_domain, o.event_type, o.event_stream, o.event_seq, m.found, m.wanted,
       m.found_at, m.restamped_at, m.accepted_at,
       not public.fn_iu_outbox_consumed(c, o.xact_id, o.event_seq, o.id) as waiting,
       -- Would a decision of today write an attempt that is not there?
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
                               where a.idempotency_key = 'outbound:' || k.route_code || ':' || o.id
                                 and a.attempt_no = 1)) as repairable
  from public.iu_audit_missing m
  join public.iu_route_worker_cursor c on c.worker_name = m.worker_name
  join public.event_outbox o on o.id = m.event_ref
 where m.confirmed_at is not null;
comment on view public.v_iu_audit_missing is
    'Events that lack attempts, confirmed: how many they have and should have, whether they wait to be decided once '
    'more, and whether a decision of today would write what they lack.';

create view public.v_iu_audit as
select c.worker_name, a.finished_at, a.last_checked as checked, a.last_seconds as seconds, m.missing, m.accepted,
       a.started_at, a.checked as checked_so_far
  from public.iu_route_worker_cursor c
  left join public.iu_audit a on a.worker_name = c.worker_name
 cross join lateral (
       select count(*) filter (where x.accepted_at is null) as missing,
              count(*) filter (where x.accepted_at is not null) as accepted
         from public.iu_audit_missing x
        where x.worker_name = c.worker_name and x.confirmed_at is not null) m;
comment on view public.v_iu_audit is
    'The last audit of each worker: when it ended, how many events it looked at, how many lack attempts; and the one '
    'that is running.';

-- Repair -------------------------------------------------------------------------------------------------

-- An event that lacks an attempt gets a new position, as if it were written now: so it lies before every cursor of its
-- domain, and is decided in the ordinary way. Keys suppress what was decided already. In order of the old positions, so
-- that the events of a subject keep their order among themselves; they come after those of their subject that were
-- not missing (docs/why/audit.md).
--
-- Where a decision of today would write nothing new, because a route is disabled or gone, a new position would change
-- nothing, now or ever. Such an event is accepted as it is.
create function public.fn_iu_audit_repair(p_worker_name text, p_limit integer default 1000)
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
          from public.v_iu_audit_missing v
         -- What was moved already may have been decided since: it is for the next confirmation to say.
         where v.worker_name = p_worker_name and v.accepted_at is null and v.restamped_at is null and not v.waiting
         order by v.event_seq, v.event_ref
         limit p_limit
    loop
        v_seen := v_seen + 1;
        if v_event.repairable then
            update public.event_outbox o
               set xact_id = pg_current_xact_id(), event_seq = nextval('public.event_outbox_event_seq')
             where o.id = v_event.event_ref;
            update public.iu_audit_missing m set restamped_at = now()
             where m.worker_name = p_worker_name and m.event_ref = v_event.event_ref;
            v_restamped := v_restamped + 1;
        else
            update public.iu_audit_missing m set accepted_at = now()
             where m.worker_name = p_worker_name and m.event_ref = v_event.event_ref;
            v_accepted := v_accepted + 1;
        end if;
    end loop;
    -- An update does not ring the bell, and a sleeping consumer would take these for a lost wake-up.
    if v_restamped > 0 and pg_notification_queue_usage() < 0.5 then
        perform pg_notify('iu_event_outbox', '');
    end if;
    return jsonb_build_object('restamped', v_restamped, 'accepted', v_accepted, 'more', v_seen = p_limit);
end
$$;
comment on function public.fn_iu_audit_repair(text, integer) is
    'Puts events that lack attempts before the cursor again, the next few of them in order; accepts those that no '
    'decision of today could complete.';
