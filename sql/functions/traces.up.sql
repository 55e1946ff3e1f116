-- Trace export (span export): the views and functions by which a consumer reads attempts and dead letters as spans,
-- from a durable position.
--
-- kind: repeatable
-- needs: 005, 007, 008, 011, 017, functions/outbox_position, functions/trace_ids
-- locks: nothing that other sessions use

-- Spans --------------------------------------------------------------------------------------------------

create or replace view public.v_iu_route_attempt as
select a.id, a.event_ref, a.route_kind, a.route_code, a.status, a.decision, a.delivered, a.failure_code,
       a.idempotency_key, a.attempt_no, a.created_at, a.finished_at,
       public.fn_iu_trace_id(a.event_ref, a.traceparent) as trace_id,
       public.fn_iu_span_id('attempt', a.idempotency_key || ' ' || a.attempt_no) as span_id, a.target,
       case when a.target not like 'workflow %'
            then public.fn_iu_span_id('call', a.idempotency_key || ' ' || a.attempt_no) end as call_span_id
  from public.iu_route_attempt a;
comment on view public.v_iu_route_attempt is
    'Every attempt, with its trace id and span id in a tracing backend, its target, and the span id of its call, '
    'unless the target is a coroutine.';

-- PostgreSQL declares its own function as volatile, and a view with a volatile column cannot be read in the order of an
-- index.
create or replace function public.fn_iu_trace_commit_at(p_xact_id xid8)
returns timestamptz
language sql
stable
return case when current_setting('track_commit_timestamp') = 'on' then pg_xact_commit_timestamp(p_xact_id::xid) end;
comment on function public.fn_iu_trace_commit_at(xid8) is
    'The commit time of a transaction. Null: the server does not track commit times, or no longer has this one.';

-- The data of a span: an attempt, its event if it still exists, and the dead letter that the attempt made or replays.
-- Times set by a producer are limited to possible values: not infinity, not the future. A restored attempt, or its
-- stamp, is older than the present anchor; the history of its batch is then unknown (own_history is false). Of a long
-- text the beginning is enough: one character more than a span may have.
create or replace view public.v_iu_trace_attempt as
select a.xact_id, a.id, a.event_ref, a.route_kind, a.route_code, a.status, a.decision, a.failure_code, a.idempotency_key,
       a.attempt_no, greatest('epoch', least(a.created_at, now())) as created_at,
       greatest('epoch', least(a.finished_at, now())) as finished_at, a.traceparent,
       case when o.id is not null then greatest('epoch', least(o.created_at, a.finished_at, now())) end as event_at,
       case when o.id is not null then public.fn_iu_trace_commit_at(o.xact_id) end as commit_at,
       o.event_domain, o.event_type, left(coalesce(o.event_subject_ref::text, o.canonical_address), 4097) as subject,
       left(o.correlation_id, 4097) as correlation_id, o.traceparent as event_context,
       case when a.attempt_no > 1 and d.created_at < a.created_at then d.id end as replayed_id,
       left(d.failure_detail, 4097) as failure_detail,
       coalesce(a.batch_xact_id, a.xact_id) as batch_xact_id, a.target,
       case when a.attempt_no > 1
            then (select max(p.attempt_no) from public.iu_route_attempt p
                   where p.idempotency_key = a.idempotency_key and p.attempt_no < a.attempt_no) end as former_no,
       coalesce(coalesce(a.batch_xact_id, a.xact_id) >= (select x.xact_id from public.iu_outbox_anchor x)
                and a.created_at >= (select x.created_at from public.iu_outbox_anchor x), false) as own_history,
       -- If a domain has several workers, the one that decided is unknown.
       (select min(w.worker_name) from public.iu_route_worker_cursor w
         where w.event_domain = o.event_domain having count(*) = 1) as worker_name
  from public.iu_route_attempt a
  left join public.event_outbox o on o.id = a.event_ref
  left join public.iu_route_dead_letter d
    on d.idempotency_key = a.idempotency_key and (a.attempt_no > 1 or a.status = 'failed')
   -- An attempt that will be repeated has no dead letter yet, and a dead letter that was made after an attempt is not
   -- its own.
   and (a.decision = 'dead_letter' or d.created_at < a.created_at);
comment on view public.v_iu_trace_attempt is 'The data for the span of an attempt and the span of its event.';

create or replace view public.v_iu_trace_dead_letter as
select d.xact_id, d.id, d.worker_name, d.event_ref, d.route_kind, d.route_code, d.idempotency_key, d.failure_code,
       left(d.failure_detail, 4097) as failure_detail, greatest('epoch', least(d.created_at, now())) as created_at,
       public.fn_iu_trace_context(d.event_snapshot ->> 'traceparent') as traceparent,
       d.event_snapshot ->> 'event_domain' as event_domain, d.event_snapshot ->> 'event_type' as event_type,
       left(coalesce(d.event_snapshot ->> 'event_subject_ref', d.event_snapshot ->> 'canonical_address'), 4097) as subject,
       left(d.event_snapshot ->> 'correlation_id', 4097) as correlation_id,
       a.attempt_no as gave_up_no,
       case when a.id is not null then greatest('epoch', least(a.finished_at, now())) end as gave_up_at
  from public.iu_route_dead_letter d
  left join lateral (
       -- The first attempt that gave up; later ones are failed replays.
       select x.id, x.attempt_no, x.finished_at
         from public.iu_route_attempt x
        where x.idempotency_key = d.idempotency_key and x.decision = 'dead_letter'
        order by x.attempt_no
        limit 1) a on true;
comment on view public.v_iu_trace_dead_letter is 'The data for the span of a dead letter.';

-- Position -----------------------------------------------------------------------------------------------

create or replace function public.fn_iu_trace_register(p_name text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
begin
    if not exists (select from public.iu_trace_cursor t where t.name = p_name) then
        insert into public.iu_trace_cursor (name, lineage, prev)
        select p_name, x.lineage, public.fn_iu_outbox_tick() from public.iu_outbox_anchor x
        on conflict (name) do nothing;
    end if;
end
$$;
comment on function public.fn_iu_trace_register(text) is
    'Begins an export from now on; does nothing if it has begun already.';

-- The rows to export next: the open tick, otherwise a new one. A call that finds nothing takes no xid and writes
-- nothing.
create or replace function public.fn_iu_trace_tick(p_name text)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
    t         public.iu_trace_cursor;
    v_refusal text;
    v_open    xid8[];
    v_from    xid8;
    v_to      xid8;
begin
    select x.* into t from public.iu_trace_cursor x where x.name = p_name;
    if not found then
        raise exception 'there is no trace export %', p_name
            using errcode = 'no_data_found', hint = 'A consumer with a collector registers its export when it starts.';
    end if;
    v_refusal := public.fn_iu_outbox_refusal(t.lineage, t.prev);
    if v_refusal is not null then
        return jsonb_build_object('status', 'refused', 'reason', v_refusal);
    end if;
    if t.tick is null then
        -- The transactions that have ended: after a restore an attempt may carry the number of a transaction that has
        -- not.
        v_open := array(select x.xid from pg_snapshot_xip(t.prev) x(xid)
                         where pg_visible_in_snapshot(x.xid, pg_current_snapshot()));
        v_from := pg_snapshot_xmax(t.prev);
        -- The present end of the transaction numbers: after a restore there may be stamps of another history beyond it.
        v_to := pg_snapshot_xmax(pg_current_snapshot());
        if not exists (select from (select a.id from public.iu_route_attempt a
                                     where a.xact_id >= v_from and a.xact_id < v_to order by a.xact_id limit 1) new)
           and not exists (select from (select d.id from public.iu_route_dead_letter d
                                         where d.xact_id >= v_from and d.xact_id < v_to order by d.xact_id limit 1) new)
           and not exists (select from unnest(v_open) x(xid)
                            cross join lateral (select a.id from public.iu_route_attempt a
                                                 where a.xact_id between x.xid and x.xid
                                                 order by a.xact_id limit 1) ended)
           and not exists (select from unnest(v_open) x(xid)
                            cross join lateral (select d.id from public.iu_route_dead_letter d
                                                 where d.xact_id between x.xid and x.xid
                                                 order by d.xact_id limit 1) ended) then
            return jsonb_build_object('status', 'idle');
        end if;
        select x.* into t from public.iu_trace_cursor x where x.name = p_name for update;
        -- Taken after the lock, in a statement of its own, as in fn_iu_route_worker_run.
        if t.tick is null then
            select public.fn_iu_outbox_tick() into t.tick;
            update public.iu_trace_cursor x set tick = t.tick where x.name = p_name;
        end if;
    end if;
    return jsonb_build_object(
        'status', 'tick', 'prev', t.prev, 'tick', t.tick, 'lineage', t.lineage, 'attempt', jsonb_build_array(t.attempt_xid, t.attempt_id),
        'letter', jsonb_build_array(t.dead_letter_xid, t.dead_letter_id));
end
$$;
comment on function public.fn_iu_trace_tick(text) is
    'Answers the status: tick (with its snapshots and the accepted position), idle, or refused (with the reason).';

-- One lower bound: with two, an index may begin its search at the earlier one.
create or replace function public.fn_iu_trace_attempts(
    p_prev pg_snapshot, p_tick pg_snapshot, p_after_xid xid8, p_after_id bigint, p_limit integer)
returns setof public.v_iu_trace_attempt
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    c_first    constant bigint := -9223372036854775808;
    v_low_xid  constant xid8 := greatest(pg_snapshot_xmax(p_prev), p_after_xid);
    v_low_id   constant bigint := case when p_after_xid >= pg_snapshot_xmax(p_prev) then p_after_id else c_first end;
    v_to       constant xid8 := pg_snapshot_xmax(p_tick);
    v_open     constant xid8[] := array(select pg_snapshot_xip(p_tick));
    v_resolved constant xid8[] := array(select x.xid from pg_snapshot_xip(p_prev) x(xid)
                                         where pg_visible_in_snapshot(x.xid, p_tick) order by x.xid);
begin
    return query
    select u.*
      from (select r.*
              from unnest(v_resolved) x(xid)
             cross join lateral (
                   select s.* from public.v_iu_trace_attempt s
                    where s.xact_id <= x.xid
                      and (s.xact_id, s.id) > (greatest(x.xid, p_after_xid),
                                               case when p_after_xid >= x.xid then p_after_id else c_first end)
                    order by s.xact_id, s.id limit p_limit) r
            union all
            (select s.* from public.v_iu_trace_attempt s
              where (s.xact_id, s.id) > (v_low_xid, v_low_id) and s.xact_id < v_to and s.xact_id <> all (v_open)
              order by s.xact_id, s.id limit p_limit)) u
     order by u.xact_id, u.id
     limit p_limit;
end
$$;
comment on function public.fn_iu_trace_attempts(pg_snapshot, pg_snapshot, xid8, bigint, integer) is
    'The next p_limit attempts after (p_after_xid, p_after_id) that are visible in p_tick and not in p_prev.';

create or replace function public.fn_iu_trace_dead_letters(
    p_prev pg_snapshot, p_tick pg_snapshot, p_after_xid xid8, p_after_id uuid, p_limit integer)
returns setof public.v_iu_trace_dead_letter
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    c_first    constant uuid := '00000000-0000-0000-0000-000000000000';
    v_low_xid  constant xid8 := greatest(pg_snapshot_xmax(p_prev), p_after_xid);
    v_low_id   constant uuid := case when p_after_xid >= pg_snapshot_xmax(p_prev) then p_after_id else c_first end;
    v_to       constant xid8 := pg_snapshot_xmax(p_tick);
    v_open     constant xid8[] := array(select pg_snapshot_xip(p_tick));
    v_resolved constant xid8[] := array(select x.xid from pg_snapshot_xip(p_prev) x(xid)
                                         where pg_visible_in_snapshot(x.xid, p_tick) order by x.xid);
begin
    return query
    select u.*
      from (select r.*
              from unnest(v_resolved) x(xid)
             cross join lateral (
                   select s.* from public.v_iu_trace_dead_letter s
                    where s.xact_id <= x.xid
                      and (s.xact_id, s.id) > (greatest(x.xid, p_after_xid),
                                               case when p_after_xid >= x.xid then p_after_id else c_first end)
                    order by s.xact_id, s.id limit p_limit) r
            union all
            (select s.* from public.v_iu_trace_dead_letter s
              where (s.xact_id, s.id) > (v_low_xid, v_low_id) and s.xact_id < v_to and s.xact_id <> all (v_open)
              order by s.xact_id, s.id limit p_limit)) u
     order by u.xact_id, u.id
     limit p_limit;
end
$$;
comment on function public.fn_iu_trace_dead_letters(pg_snapshot, pg_snapshot, xid8, uuid, integer) is
    'The next p_limit dead letters after (p_after_xid, p_after_id) that are visible in p_tick and not in p_prev.';

-- Export again: all rows of the transactions from the first one that wrote since p_since, up to now. No cursor is
-- moved. Ids are fixed, so a backend recognizes a span that it has, and an interrupted repetition is started again from
-- its beginning.
create or replace function public.fn_iu_trace_again(p_since timestamptz)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
    with here (xid) as (
        -- All rows that are visible now, whatever their stamps: after a restore some stamps lie beyond the present
        -- transaction number.
        select max(t.xid)
          from (select pg_snapshot_xmax(pg_current_snapshot()) as xid
                union all
                select (max(a.xact_id)::text::bigint + 1)::text::xid8 from public.iu_route_attempt a
                union all
                select (max(d.xact_id)::text::bigint + 1)::text::xid8 from public.iu_route_dead_letter d) t)
    select jsonb_build_object(
               'prev', '3:3:', 'tick', format('%1$s:%1$s:', h.xid), 'lineage', x.lineage,
               'attempt', jsonb_build_array(coalesce(a.first, h.xid), 0),
               'letter', jsonb_build_array(coalesce(d.first, h.xid), '00000000-0000-0000-0000-000000000000'))
      from public.iu_outbox_anchor x
     cross join here h
     cross join lateral (select min(r.xact_id) as first
                           from public.iu_route_attempt r where r.created_at >= p_since) a
     cross join lateral (select min(r.xact_id) as first
                           from public.iu_route_dead_letter r where r.created_at >= p_since) d
$$;
comment on function public.fn_iu_trace_again(timestamptz) is
    'The range of a repeated export since p_since, in the form that fn_iu_trace_tick answers.';

-- Two exporters may overlap for a moment when a lease changes hands; therefore a position never goes back, and only the
-- open tick can be ended. Positions that a crash of the server loses are exported again, so the commit does not wait
-- for the disk.
--
-- The answer tells an exporter to slow down: a worker was in the middle of a tick within the last 2 seconds, which
-- means that it drains a backlog. Its batches have priority, and no span is lost by the delay.
create or replace function public.fn_iu_trace_accepted(
    p_name text, p_tick pg_snapshot, p_attempt_xid xid8, p_attempt_id bigint, p_dead_letter_xid xid8, p_dead_letter_id uuid,
    p_done boolean, p_exported bigint, p_rejected bigint, p_ignored bigint)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    -- The new values depend only on this row, so a session that waited for its lock computes them from the current
    -- values.
    update public.iu_trace_cursor t
       set prev = case when p_done then t.tick else t.prev end,
           tick = case when p_done then null else t.tick end,
           attempt_xid = case when p_done then '0' else greatest(t.attempt_xid, p_attempt_xid) end,
           attempt_id = case when p_done then 0
                             when (p_attempt_xid, p_attempt_id) > (t.attempt_xid, t.attempt_id) then p_attempt_id
                             else t.attempt_id end,
           dead_letter_xid = case when p_done then '0' else greatest(t.dead_letter_xid, p_dead_letter_xid) end,
           dead_letter_id = case when p_done then '00000000-0000-0000-0000-000000000000'
                            when (p_dead_letter_xid, p_dead_letter_id) > (t.dead_letter_xid, t.dead_letter_id) then p_dead_letter_id
                            else t.dead_letter_id end,
           exported = t.exported + p_exported, rejected = t.rejected + p_rejected, ignored = t.ignored + p_ignored,
           last_export_at = case when p_exported > 0 then clock_timestamp() else t.last_export_at end
     where t.name = p_name and t.tick::text = p_tick::text;
    return exists (select from public.iu_route_worker_cursor w
                    where w.tick is not null and w.last_run_at > clock_timestamp() - interval '2 seconds');
end
$$;
comment on function public.fn_iu_trace_accepted(text, pg_snapshot, xid8, bigint, xid8, uuid, boolean, bigint, bigint, bigint) is
    'Moves the position of an export after a page was accepted; p_done ends its tick. True: a worker drains a '
    'backlog, and the export should slow down.';
