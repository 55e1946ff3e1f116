-- Retention: deletes old events, attempts and dead letters by policy. Every policy is disabled until an operator
-- enables it.
--
-- kind: repeatable
-- needs: 005, 006, 008, 012, 014, 016, 017, functions/outbox_position, functions/idempotency_key
-- locks: nothing that other sessions use

-- Conditions ---------------------------------------------------------------------------------------------
--
-- An event may be deleted when every cursor of its domain has read it and it is older than the policy. Age alone would
-- delete an event that committed late before any worker has read it; reading alone would leave no history.
--
--   * Only domains that have a cursor are handled. Events of other domains are not read.
--   * While a cursor is refused, its position is not valid. Then no event of its domain is deleted, and no attempt
--     and no dead letter either, because after a restore a missing event may only mean that it is not restored yet.
--   * The age is that of the insert, and created_at alone does not prove it, because producers set it: it may be
--     1970, infinity, or the start of a transaction of yesterday. Events are numbered when they are written, so the
--     first event that is younger than the policy proves that all events after it were written later; the search ends
--     there. A created_at in the future proves nothing, and such an event stays until that time plus the policy has
--     passed.
--   * Attempts and dead letters describe an event. Attempts outlive their event: the completeness check would report
--     an event without them as undecided, and their keys suppress a second decision when a cursor is set back. An
--     open dead letter keeps its attempts, because it counts them; it is never deleted while it is open.

-- The single place for the conditions of all other readers of attempts, dead letters or their events; run, plan and
-- partitions call it for every row. A component that reads them from a position of its own adds its condition here:
--
--   * The completeness check must be able to repair events. It is asked for each worker, because its list is indexed by
--     worker.
--   * A pending delivery needs its event.
--   * An event with attempts that a trace export has not read is not released; the attempts are found by their keys, as
--     in the completeness check. An attempt with a stamp that this history has not reached was restored; the reanchor
--     has reported which of these were not exported.
--
-- The plan mode is fixed independently of the caller, because PostgreSQL 18 would otherwise plan anew for every row.
create or replace function public.fn_iu_retention_releasable(p_event_ref uuid)
returns boolean
language sql
stable
set plan_cache_mode = force_generic_plan
return not exists (select from public.iu_route_worker_cursor w
                     join public.iu_completeness_missing m
                       on m.worker_name = w.worker_name and m.event_ref = p_event_ref and m.accepted_at is null)
   and not exists (select from public.iu_route_delivery d where d.event_ref = p_event_ref)
   -- This is asked for every row; if there is no export, only the first condition is evaluated.
   and (not exists (select from public.iu_trace_cursor)
        or not exists (select from (select r.route_code from public.iu_outbound_route r
                                    union select unnest(u.codes) from public.iu_completeness_pass u union select '(none)') k
                        cross join lateral (select a.xact_id from public.iu_route_attempt a
                                             where a.idempotency_key = public.fn_iu_idempotency_key(k.route_code, p_event_ref)) a
                         join public.iu_trace_cursor t on not pg_visible_in_snapshot(a.xact_id, t.prev)
                         where a.xact_id < pg_snapshot_xmax(pg_current_snapshot())));
comment on function public.fn_iu_retention_releasable(uuid) is
    'Whether all other readers have finished with this event: the completeness check does not list it, no delivery of '
    'it is pending, and its attempts are exported.';

-- The highest values stand for "none", so that an index can serve the row comparisons.
create or replace function public.fn_iu_retention_domains(p_cutoff timestamptz default null)
returns table (event_domain text, cursors public.iu_route_worker_cursor[], refusing text,
               young_seq bigint, young_id uuid)
language sql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
    select c.event_domain, c.cursors, c.refusing, coalesce(y.event_seq, 9223372036854775807),
           coalesce(y.id, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
      from (select w.event_domain, array_agg(w) as cursors,
                   string_agg(w.worker_name || ': ' || r.why, ', ' order by w.worker_name)
                       filter (where r.why is not null) as refusing
              from public.iu_route_worker_cursor w
             cross join lateral (select public.fn_iu_outbox_refusal(w.lineage, w.prev)) r(why)
             group by w.event_domain) c
      left join lateral (
           select o.event_seq, o.id
             from public.event_outbox o
            where p_cutoff is not null and o.event_domain = c.event_domain and o.created_at between p_cutoff and now()
            order by o.event_seq, o.id
            limit 1) y on true
$$;
comment on function public.fn_iu_retention_domains(timestamptz) is
    'The domains that have cursors, with all their cursors, the refused ones among them with reasons (null: none), '
    'and the position of the first event that is younger than p_cutoff: only events before it are old.';

-- Verdicts -----------------------------------------------------------------------------------------------
--
-- Each row that is old enough has one verdict. A run deletes the rows with the verdict goes; the plan counts the rows by
-- verdict:
--
--   goes                    a run would delete it
--   unread                  a worker has not read it yet (who: the workers)
--   refusing                a cursor is refused (who: the workers and the reasons)
--   created_in_the_future   its created_at is not old, although its number is
--   event_still_there       it describes an event that is still in the outbox
--   open_dead_letter        it is an open dead letter, or an attempt of one
--   not_released            the completeness check lists its event, or another reader still needs it
--
-- These functions have no SET clause, so the planner inlines them where they are called in FROM. Their bodies have the
-- form of the SQL standard, so their names are bound when they are created.

create or replace function public.fn_iu_retention_event_verdict(
    p_refusing text, p_cursors public.iu_route_worker_cursor[], p_cutoff timestamptz,
    p_created_at timestamptz, p_xact_id xid8, p_event_seq bigint, p_id uuid)
returns table (verdict text, who text)
language sql
stable
begin atomic
    select case when p_refusing is not null then 'refusing'
                when p_created_at >= p_cutoff then 'created_in_the_future'
                when u.who is not null then 'unread'
                when not public.fn_iu_retention_releasable(p_id) then 'not_released'
                else 'goes' end,
           coalesce(p_refusing, u.who)
      from (select string_agg(c.worker_name, ', ' order by c.worker_name)
              from unnest(p_cursors) c
             where not public.fn_iu_outbox_consumed(c, p_xact_id, p_event_seq, p_id)) u(who);
end;
comment on function public.fn_iu_retention_event_verdict(
    text, public.iu_route_worker_cursor[], timestamptz, timestamptz, xid8, bigint, uuid) is
    'The verdict of retention on an event, and the workers that cause it. p_refusing: the refused workers of its domain; '
    'null: there is none.';

-- "offset 0": the event and the dead letter are looked up by their keys. A hash of all events would be built for every
-- page.
create or replace function public.fn_iu_retention_attempt_verdict(
    p_refusing text, p_event_ref uuid, p_idempotency_key text)
returns table (verdict text)
language sql
stable
begin atomic
    select case when p_refusing is not null then 'refusing'
                when exists (select from public.event_outbox o where o.id = p_event_ref offset 0) then 'event_still_there'
                when exists (select from public.iu_route_dead_letter l
                              where l.idempotency_key = p_idempotency_key and l.resolved_at is null offset 0)
                    then 'open_dead_letter'
                when not public.fn_iu_retention_releasable(p_event_ref) then 'not_released'
                else 'goes' end;
end;
comment on function public.fn_iu_retention_attempt_verdict(text, uuid, text) is
    'The verdict of retention on an attempt. p_refusing: the refused workers; null: there is none.';

-- A dead letter without any attempt is the only record of a decision, so it stays as long as its event.
create or replace function public.fn_iu_retention_dead_letter_verdict(
    p_refusing text, p_event_ref uuid, p_attempt_no integer, p_resolved_at timestamptz)
returns table (verdict text)
language sql
stable
begin atomic
    select case when p_refusing is not null then 'refusing'
                when p_resolved_at is null then 'open_dead_letter'
                when p_attempt_no = 0 and exists (select from public.event_outbox o where o.id = p_event_ref offset 0)
                    then 'event_still_there'
                when not public.fn_iu_retention_releasable(p_event_ref) then 'not_released'
                else 'goes' end;
end;
comment on function public.fn_iu_retention_dead_letter_verdict(text, uuid, integer, timestamptz) is
    'The verdict of retention on a dead letter. p_refusing: the refused workers; null: there is none.';

-- One batch ----------------------------------------------------------------------------------------------
--
-- A batch reads one page, in order, from the end of the previous one. So a run reads rows that have to stay, and dead
-- rows that are not vacuumed yet, once and not once for each batch. The verdict is made on the locked row, because the
-- row may have changed since the page was read. Rows that another session has locked are left to the next run.
--
-- There is one function for each kind of rows. "gone" is the number of deleted rows, "looked" the number of rows of the
-- page, and "after" the end of the page; null: there is no further page.

create or replace function public.fn_iu_retention_run_events(
    p_limit integer, p_cutoff timestamptz, p_after jsonb, out gone bigint, out looked bigint, out after jsonb)
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
-- As in the batch of the worker: a page by its index, each row by its key; other plan shapes are slow. But the plan is
-- made for each batch, which costs little in comparison: a plan that was made while the outbox was empty scans it
-- completely for each row.
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set max_parallel_workers_per_gather = 0
set jit = off
as $$
declare
    v_now      constant timestamptz := now();
    v_domain   text;
    v_cursors  public.iu_route_worker_cursor[];
    v_refusing text;
    v_seq      bigint := -9223372036854775808;
    v_id       uuid := '00000000-0000-0000-0000-000000000000';
    v_young    boolean;
begin
    gone := 0;
    looked := 0;
    select d.event_domain, d.cursors, d.refusing into v_domain, v_cursors, v_refusing
      from public.fn_iu_retention_domains() d
     where d.event_domain >= coalesce(p_after ->> 'domain', '')
     order by d.event_domain
     limit 1;
    if v_refusing is null then
        -- If the domain of the position no longer exists, the position is not valid in the next domain.
        if v_domain = p_after ->> 'domain' then
            v_seq := coalesce((p_after ->> 'seq')::bigint, v_seq);
            v_id := coalesce((p_after ->> 'id')::uuid, v_id);
        end if;
        with page as materialized (
            select o.id, o.created_at, o.event_seq
              from public.event_outbox o
             where o.event_domain = v_domain and (o.event_seq, o.id) > (v_seq, v_id)
             order by o.event_seq, o.id
             limit p_limit
        ), young as materialized (
            select y.event_seq, y.id
              from page y
             where y.created_at between p_cutoff and v_now
             order by y.event_seq, y.id
             limit 1
        ), going as materialized (
            -- The row is found by its key (lateral); all events of the outbox may have the same domain.
            select k.id, k.created_at
              from page g
             cross join lateral (
                   select o.id, o.created_at
                     from public.event_outbox o
                    where o.id = g.id and o.created_at = g.created_at
                      and o.event_domain = v_domain
                      and not exists (select from young y where (o.event_seq, o.id) >= (y.event_seq, y.id))
                      and (select v.verdict
                             from public.fn_iu_retention_event_verdict(
                                  null, v_cursors, p_cutoff, o.created_at, o.xact_id, o.event_seq, o.id) v) = 'goes'
                      for update skip locked) k
        ), deleted as (
            delete from public.event_outbox o
             using going g
             where o.id = g.id and o.created_at = g.created_at
            returning o.id
        )
        select (select count(*) from deleted), (select count(*) from page), exists (select from young), l.event_seq, l.id
          into gone, looked, v_young, v_seq, v_id
          from (select) one
          left join (select x.event_seq, x.id from page x order by x.event_seq desc, x.id desc limit 1) l on true;
        if looked = p_limit and not v_young then
            after := jsonb_build_object('domain', v_domain, 'seq', v_seq, 'id', v_id);
        end if;
    end if;
    if after is null then
        select jsonb_build_object('domain', min(d.event_domain)) into after
          from public.fn_iu_retention_domains() d
         where d.event_domain > v_domain
        having count(*) > 0;
    end if;
end
$$;
comment on function public.fn_iu_retention_run_events(integer, timestamptz, jsonb) is
    'Deletes old events among the next p_limit events of one domain. Answers the number of deleted events, the number '
    'of events that were read, and the position after them.';

create or replace function public.fn_iu_retention_run_attempts(
    p_limit integer, p_cutoff timestamptz, p_after jsonb, out gone bigint, out looked bigint, out after jsonb)
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
-- As in the batch of the worker: a page by its index, each row by its key; other plan shapes are slow. But the plan is
-- made for each batch, which costs little in comparison: a plan that was made while the outbox was empty scans it
-- completely for each row.
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set max_parallel_workers_per_gather = 0
set jit = off
as $$
declare
    v_now   constant timestamptz := now();
    v_young boolean;
    v_id    bigint;
begin
    with page as materialized (
        select a.id, a.created_at
          from public.iu_route_attempt a
         where a.id > coalesce((p_after ->> 'id')::bigint, 0)
         order by a.id
         limit p_limit
    ), young as materialized (
        select min(y.id) as id from page y where y.created_at between p_cutoff and v_now
    ), going as materialized (
        select a.id
          from page g
          join public.iu_route_attempt a on a.id = g.id
         where a.created_at < p_cutoff
           and a.id < all (select y.id from young y where y.id is not null)
           -- Only attempts that the worker wrote: the table belongs to IU Core, which writes others.
           and a.idempotency_key = public.fn_iu_idempotency_key(a.route_code, a.event_ref)
           and (select v.verdict
                  from public.fn_iu_retention_attempt_verdict(null, a.event_ref, a.idempotency_key) v) = 'goes'
           for update of a skip locked
    ), deleted as (
        delete from public.iu_route_attempt a using going g where a.id = g.id returning a.id
    )
    select (select count(*) from deleted), (select count(*) from page), (select y.id is not null from young y),
           (select max(x.id) from page x)
      into gone, looked, v_young, v_id;
    if looked = p_limit and not v_young then
        after := jsonb_build_object('id', v_id);
    end if;
end
$$;
comment on function public.fn_iu_retention_run_attempts(integer, timestamptz, jsonb) is
    'Deletes old attempts among the next p_limit attempts. Answers the number of deleted attempts, the number of '
    'attempts that were read, and the position after them.';

create or replace function public.fn_iu_retention_run_dead_letters(
    p_limit integer, p_cutoff timestamptz, p_after jsonb, out gone bigint, out looked bigint, out after jsonb)
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
-- As in the batch of the worker: a page by its index, each row by its key; other plan shapes are slow. But the plan is
-- made for each batch, which costs little in comparison: a plan that was made while the outbox was empty scans it
-- completely for each row.
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set max_parallel_workers_per_gather = 0
set jit = off
as $$
declare
    v_id uuid;
begin
    with page as materialized (
        select d.id
          from public.iu_route_dead_letter d
         where d.id > coalesce((p_after ->> 'id')::uuid, '00000000-0000-0000-0000-000000000000')
         order by d.id
         limit p_limit
    ), going as materialized (
        select d.id
          from page g
          join public.iu_route_dead_letter d on d.id = g.id
         where d.resolved_at < p_cutoff
           and (select v.verdict
                  from public.fn_iu_retention_dead_letter_verdict(null, d.event_ref, d.attempt_no, d.resolved_at) v) = 'goes'
           for update of d skip locked
    ), deleted as (
        delete from public.iu_route_dead_letter d using going g where d.id = g.id returning d.id
    )
    select (select count(*) from deleted), (select count(*) from page),
           (select x.id from page x order by x.id desc limit 1)
      into gone, looked, v_id;
    if looked = p_limit then
        after := jsonb_build_object('id', v_id);
    end if;
end
$$;
comment on function public.fn_iu_retention_run_dead_letters(integer, timestamptz, jsonb) is
    'Deletes old resolved dead letters among the next p_limit dead letters. Answers the number of deleted dead letters, '
    'the number of dead letters that were read, and the position after them.';

create or replace function public.fn_iu_retention_run(
    p_what text, p_limit integer default 5000, p_keep interval default null, p_after jsonb default null)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
-- now() - interval '3 months' is computed in the time zone of the session.
set timezone = 'UTC'
as $$
declare
    p        public.iu_retention_policy;
    v_cutoff timestamptz;
    v_gone   bigint := 0;
    v_looked bigint := 0;
    v_after  jsonb;
begin
    if p_limit is null or p_limit < 1 then
        raise exception 'batch limit must be 1 or more, not %', coalesce(p_limit::text, 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    select x.* into p from public.iu_retention_policy x where x.what = p_what;
    if not found then
        raise exception 'there is no retention policy %', coalesce(p_what, 'null')
            using errcode = 'invalid_parameter_value', hint = 'The policies are events, attempts and dead_letters.';
    end if;
    if p_keep <= '0' then
        raise exception 'the interval must be positive, not %', p_keep
            using errcode = 'invalid_parameter_value', hint = 'Example: 90 days';
    end if;
    if p_keep is null and not p.enabled then
        return jsonb_build_object('status', 'disabled', 'what', p_what, 'gone', 0, 'looked', 0, 'after', null);
    end if;
    v_cutoff := least(now() - coalesce(p_keep, p.keep), now());

    if p_what = 'events' then
        select r.* into v_gone, v_looked, v_after from public.fn_iu_retention_run_events(p_limit, v_cutoff, p_after) r;
    elsif exists (select from public.fn_iu_retention_domains() d where d.refusing is not null) then
        -- A restored outbox that does not have all its events yet looks as if they were deleted.
        v_looked := 0;
    elsif p_what = 'attempts' then
        select r.* into v_gone, v_looked, v_after from public.fn_iu_retention_run_attempts(p_limit, v_cutoff, p_after) r;
    else
        select r.* into v_gone, v_looked, v_after
          from public.fn_iu_retention_run_dead_letters(p_limit, v_cutoff, p_after) r;
    end if;

    update public.iu_retention_policy x
       set last_run_at = clock_timestamp(), total_gone = x.total_gone + v_gone,
           last_gone = v_gone + case when p_after is null then 0 else coalesce(x.last_gone, 0) end
     where x.what = p_what;
    return jsonb_build_object('status', 'ran', 'what', p_what, 'gone', v_gone, 'looked', v_looked, 'after', v_after);
end
$$;
comment on function public.fn_iu_retention_run(text, integer, interval, jsonb) is
    'Deletes rows that may be deleted among the next p_limit rows, in one short transaction. Call it again with the '
    'value of "after" in its answer, until that is null. p_keep overrides the policy, even a disabled one.';

-- The plan -----------------------------------------------------------------------------------------------

create or replace function public.fn_iu_retention_plan(p_keep interval default null, p_what text[] default null)
returns table (what text, verdict text, who text, count bigint, oldest timestamptz, youngest timestamptz)
language sql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
-- now() - interval '3 months' is computed in the time zone of the session.
set timezone = 'UTC'
set jit = off
as $$
    -- Materialized: each has one or a few rows and must be computed once, not once for each event.
    with policy as materialized (
        select p.what, least(now() - coalesce(p_keep, p.keep), now()) as cutoff
          from public.iu_retention_policy p
         where p.what = any (p_what) or p_what is null
    ), domain as materialized (
        select p.cutoff, d.*
          from policy p
         cross join lateral public.fn_iu_retention_domains(p.cutoff) d
         where p.what = 'events'
    ), audit as materialized (
        select p.what, p.cutoff,
               (select string_agg(d.refusing, ', ' order by d.event_domain) from public.fn_iu_retention_domains() d) as refusing,
               coalesce((select min(a.id) from public.iu_route_attempt a where a.created_at between p.cutoff and now()),
                        9223372036854775807) as young
          from policy p
         where p.what <> 'events'
    ), judged (what, verdict, who, at) as (
        select 'events', v.verdict, v.who, o.created_at
          from domain d
          join public.event_outbox o
            on o.event_domain = d.event_domain and (o.event_seq, o.id) < (d.young_seq, d.young_id)
         cross join lateral public.fn_iu_retention_event_verdict(
               d.refusing, d.cursors, d.cutoff, o.created_at, o.xact_id, o.event_seq, o.id) v
        union all
        select p.what, v.verdict, p.refusing, a.created_at
          from audit p
          join public.iu_route_attempt a
            on a.created_at < p.cutoff and a.id < p.young
           and a.idempotency_key = public.fn_iu_idempotency_key(a.route_code, a.event_ref)
         cross join lateral public.fn_iu_retention_attempt_verdict(p.refusing, a.event_ref, a.idempotency_key) v
         where p.what = 'attempts'
        union all
        select p.what, v.verdict, p.refusing, coalesce(l.resolved_at, l.created_at)
          from audit p
          join public.iu_route_dead_letter l on coalesce(l.resolved_at, l.created_at) < p.cutoff
         cross join lateral public.fn_iu_retention_dead_letter_verdict(
               p.refusing, l.event_ref, l.attempt_no, l.resolved_at) v
         where p.what = 'dead_letters'
    )
    select j.what, j.verdict, j.who, count(*), min(j.at), max(j.at)
      from judged j
     group by j.what, j.verdict, j.who
     order by array_position(array['events', 'attempts', 'dead_letters'], j.what), j.verdict <> 'goes', j.verdict, j.who
$$;
comment on function public.fn_iu_retention_plan(interval, text[]) is
    'The rows that a run would delete now, and the reasons why the other rows that are old enough stay: one row for '
    'each verdict and each worker that causes it.';

-- Partitions ---------------------------------------------------------------------------------------------
--
-- If the owner of IU Core has partitioned the outbox by created_at, old months are removed as whole partitions:
-- detached, they are plain tables. No event may be removed in this way before it was read. A producer with an old
-- created_at may insert into an old partition at any time, and no cursor reads a detached partition. So a partition is
-- first closed to producers (by the trigger below, whose creation waits for open transactions that write to it), then
-- every event in it is checked, and only then it is detached. An insert after that fails, as it would after the
-- detachment, when there is no partition for its event.
create or replace function public.fn_iu_outbox_retired()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'partition % accepts no more events: they are older than the retention policy keeps', tg_table_name
        using errcode = 'check_violation', hint = 'Check created_at of the event.';
end
$$;
comment on function public.fn_iu_outbox_retired() is
    'Closes a partition that is about to be detached: raises check_violation for each insert.';

create or replace function public.fn_iu_outbox_partitions()
returns table (part regclass, "from" timestamptz, "to" timestamptz, is_default boolean, is_table boolean,
               pending boolean, closed boolean)
language sql
stable
set search_path = pg_catalog, pg_temp
-- The bounds are read as text, and a time zone in text form may be an ambiguous abbreviation.
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
    select k.oid::regclass,
           case when b.bound is not null then coalesce(b.bound[1], '-infinity')::timestamptz end,
           case when b.bound is not null then coalesce(b.bound[2], 'infinity')::timestamptz end,
           e.bound = 'DEFAULT', k.relkind = 'r', i.inhdetachpending,
           exists (select from pg_catalog.pg_trigger g
                    where g.tgrelid = k.oid and g.tgname = 'zz_event_outbox_retired' and g.tgenabled <> 'D')
      from pg_catalog.pg_partitioned_table t
      join pg_catalog.pg_attribute a on a.attrelid = t.partrelid and a.attnum = t.partattrs[0]
      join pg_catalog.pg_inherits i on i.inhparent = t.partrelid
      join pg_catalog.pg_class k on k.oid = i.inhrelid
     cross join lateral (select pg_catalog.pg_get_expr(k.relpartbound, k.oid)) e(bound)
      left join lateral (
           select regexp_match(e.bound, $re$^FOR VALUES FROM \((?:MINVALUE|'([^']+)')\) TO \((?:MAXVALUE|'([^']+)')\)$re$)
           ) b(bound) on true
     where t.partrelid = 'public.event_outbox'::regclass and t.partstrat = 'r' and t.partnatts = 1
       and a.attname = 'created_at'
     order by 2
$$;
comment on function public.fn_iu_outbox_partitions() is
    'The partitions of event_outbox by created_at, oldest first. No row: it is not partitioned by created_at.';
