-- Traces: which trace and span an attempt and a dead letter are, and a reader that gives each of them to an exporter.
--
-- needs: 005, 007, 008, 009, 011, 014, 016
-- locks: nothing that exists

-- Identity -----------------------------------------------------------------------------------------------
--
-- A pure function of the row, here and in Python (iu_listen/model/trace.py; a test compares the two), so trace and row
-- find each other without a column, and an export that is repeated repeats the same spans:
--
--   trace id   the producer's, if it gave a W3C context that is valid; else the event's UUID without dashes
--   span id    the first 8 bytes of SHA-256 of what it is and its key, as in
--              'attempt outbound:iu.version_applied.workflow:<event> 1', the same with 'call', 'dead_letter <id>',
--              'event <id>'
--
-- All zeros is no identity (W3C Trace Context, 3.2.2.3); all ones stand in for it.

create function public.fn_iu_trace_id(p_event_ref uuid, p_traceparent text)
returns text
language sql
immutable
parallel safe
return coalesce(substr(public.fn_iu_trace_context(p_traceparent), 4, 32),
                nullif(replace(p_event_ref::text, '-', ''), repeat('0', 32)), repeat('f', 32));
comment on function public.fn_iu_trace_id(uuid, text) is
    'Trace id of all that happens to an event, in hexadecimal: its producer''s, else its own id without dashes.';

create function public.fn_iu_span_id(p_what text, p_key text)
returns text
language sql
stable
parallel safe
return coalesce(nullif(encode(substr(sha256(convert_to(p_what || ' ' || p_key, 'UTF8')), 1, 8), 'hex'), repeat('0', 16)),
                repeat('f', 16));
comment on function public.fn_iu_span_id(text, text) is
    'Span id, in hexadecimal, of an attempt or its call (idempotency key, space, number), a dead letter (id) or an event (id).';

create view public.v_iu_route_attempt as
select a.id, a.event_ref, a.route_kind, a.route_code, a.status, a.decision, a.delivered, a.failure_code,
       a.idempotency_key, a.attempt_no, a.created_at, a.finished_at,
       public.fn_iu_trace_id(a.event_ref, a.traceparent) as trace_id,
       public.fn_iu_span_id('attempt', a.idempotency_key || ' ' || a.attempt_no) as span_id, a.target,
       case when a.target not like 'workflow %'
            then public.fn_iu_span_id('call', a.idempotency_key || ' ' || a.attempt_no) end as call_span_id
  from public.iu_route_attempt a;
comment on view public.v_iu_route_attempt is
    'Every attempt, with the trace and the span that it is in a tracing backend, what it called, and, where that is no coroutine, the span of the call.';

create or replace view public.v_iu_route_dead_letter_open as
select d.id, d.worker_name, d.event_ref, d.route_code, d.failure_code, d.failure_detail, d.attempt_no,
       d.replay_count, d.created_at, now() - d.created_at as age,
       public.fn_iu_trace_id(d.event_ref, d.event_snapshot ->> 'traceparent') as trace_id,
       public.fn_iu_span_id('dead_letter', d.id::text) as span_id
  from public.iu_route_dead_letter d
 where d.resolved_at is null;
comment on view public.v_iu_route_dead_letter_open is 'Dead letters that nobody has resolved.';

-- Cursor -------------------------------------------------------------------------------------------------
--
-- Where an export is. The algebra is that of the worker's cursor (009): prev and tick are snapshots, and a tick is a set
-- of rows that never changes. What differs: order does not matter to spans, whose ids and times are fixed; so both
-- tables are read in the order of the index (xact_id, id), which needs no floor and no sort. And the position moves
-- when the collector has accepted a page, not when it was read: at least once.

create table public.iu_trace_cursor (
    name             text         not null,
    lineage          uuid         not null,
    prev             pg_snapshot  not null,
    tick             pg_snapshot,
    attempt_xid      xid8         not null default '0',
    attempt_id       bigint       not null default 0,
    letter_xid       xid8         not null default '0',
    letter_id        uuid         not null default '00000000-0000-0000-0000-000000000000',
    exported         bigint       not null default 0,
    rejected         bigint       not null default 0,
    ignored          bigint       not null default 0,
    last_export_at   timestamptz,
    created_at       timestamptz  not null default now(),

    constraint iu_trace_cursor_pkey primary key (name)
)
-- The row is updated by every page; room on the page keeps those updates HOT.
with (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

comment on table public.iu_trace_cursor is 'How far each export of traces has got. No row: nobody ever exported.';
comment on column public.iu_trace_cursor.name is 'Name of the export.';
comment on column public.iu_trace_cursor.lineage is 'The history in which this cursor was written (iu_outbox_anchor).';
comment on column public.iu_trace_cursor.prev is 'All that is visible in this snapshot was accepted, or is older than the export.';
comment on column public.iu_trace_cursor.tick is 'While a tick is partly exported: its snapshot.';
comment on column public.iu_trace_cursor.attempt_xid is 'Transaction of the last attempt of the tick that was accepted.';
comment on column public.iu_trace_cursor.attempt_id is 'Id of that attempt.';
comment on column public.iu_trace_cursor.letter_xid is 'Transaction of the last dead letter of the tick that was accepted.';
comment on column public.iu_trace_cursor.letter_id is 'Id of that dead letter.';
comment on column public.iu_trace_cursor.exported is 'Spans that were accepted.';
comment on column public.iu_trace_cursor.rejected is 'Spans that the collector refused for good.';
comment on column public.iu_trace_cursor.ignored is 'Events whose trace context was malformed, and was ignored.';
comment on column public.iu_trace_cursor.last_export_at is 'When spans were last accepted.';
comment on column public.iu_trace_cursor.created_at is 'When the export began. What is older is exported with --since.';
comment on constraint iu_trace_cursor_pkey on public.iu_trace_cursor is 'One cursor an export.';

create function public.fn_iu_trace_register(p_name text)
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
comment on function public.fn_iu_trace_register(text) is 'Begins an export, from now on; nothing if it has begun already.';

-- What there is to export: the tick that is open, else a new one. An idle look takes no xid and writes nothing.
create function public.fn_iu_trace_tick(p_name text)
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
        raise exception 'no export is called %', p_name using errcode = 'no_data_found';
    end if;
    v_refusal := public.fn_iu_outbox_refusal(t.lineage, t.prev);
    if v_refusal is not null then
        return jsonb_build_object('status', 'refused', 'reason', v_refusal);
    end if;
    if t.tick is null then
        -- Those that have ended: after a restore an attempt may carry the number of one that has not.
        v_open := array(select x.xid from pg_snapshot_xip(t.prev) x(xid)
                         where pg_visible_in_snapshot(x.xid, pg_current_snapshot()));
        v_from := pg_snapshot_xmax(t.prev);
        -- Up to where transactions have got: after a restore there are stamps of another history beyond that.
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
        -- After the lock, in a statement of its own (009).
        if t.tick is null then
            select public.fn_iu_outbox_tick() into t.tick;
            update public.iu_trace_cursor x set tick = t.tick where x.name = p_name;
        end if;
    end if;
    return jsonb_build_object(
        'status', 'tick', 'prev', t.prev, 'tick', t.tick, 'lineage', t.lineage, 'attempt', jsonb_build_array(t.attempt_xid, t.attempt_id),
        'letter', jsonb_build_array(t.letter_xid, t.letter_id));
end
$$;
comment on function public.fn_iu_trace_tick(text) is
    'Answers tick (which, and how far it was accepted), idle, or refused (and why).';

-- PostgreSQL calls its function volatile, and a view with a volatile column cannot be read in the order of an index.
create function public.fn_iu_trace_commit_at(p_xact_id xid8)
returns timestamptz
language sql
stable
return case when current_setting('track_commit_timestamp') = 'on' then pg_xact_commit_timestamp(p_xact_id::xid) end;
comment on function public.fn_iu_trace_commit_at(xid8) is
    'When a transaction was committed; null where the server does not track that, or not any more.';

-- What a span is made of: an attempt, its event, if that is still there, and the dead letter that it made or replays. What a
-- writer says of times is believed as far as it can be true: neither infinity nor the future is. An attempt that was
-- restored is older than the anchor of today, or its stamp is: in which history its batch was, nobody knows any more.
-- Of a long text the beginning is enough, one character more than a span may have.
create view public.v_iu_trace_attempt as
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
       -- Of several workers of a domain nobody knows any more which one decided.
       (select min(w.worker_name) from public.iu_route_worker_cursor w
         where w.event_domain = o.event_domain having count(*) = 1) as worker_name
  from public.iu_route_attempt a
  left join public.event_outbox o on o.id = a.event_ref
  left join public.iu_route_dead_letter d
    on d.idempotency_key = a.idempotency_key and (a.attempt_no > 1 or a.status = 'failed')
   -- An attempt that is tried again has none yet; and what was decided after it is none of its own.
   and (a.decision = 'dead_letter' or d.created_at < a.created_at);
comment on view public.v_iu_trace_attempt is 'What the span of an attempt, and that of its event, is made of.';

create view public.v_iu_trace_letter as
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
       -- The first that gave up: replays that fail come after it.
       select x.id, x.attempt_no, x.finished_at
         from public.iu_route_attempt x
        where x.idempotency_key = d.idempotency_key and x.decision = 'dead_letter'
        order by x.attempt_no
        limit 1) a on true;
comment on view public.v_iu_trace_letter is 'What the span of a dead letter is made of.';

-- One lower bound, not two: of two, an index may begin its search at the earlier one (009).
create function public.fn_iu_trace_attempts(
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
    'The next attempts that are visible in p_tick and not in p_prev.';

create function public.fn_iu_trace_letters(
    p_prev pg_snapshot, p_tick pg_snapshot, p_after_xid xid8, p_after_id uuid, p_limit integer)
returns setof public.v_iu_trace_letter
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
                   select s.* from public.v_iu_trace_letter s
                    where s.xact_id <= x.xid
                      and (s.xact_id, s.id) > (greatest(x.xid, p_after_xid),
                                               case when p_after_xid >= x.xid then p_after_id else c_first end)
                    order by s.xact_id, s.id limit p_limit) r
            union all
            (select s.* from public.v_iu_trace_letter s
              where (s.xact_id, s.id) > (v_low_xid, v_low_id) and s.xact_id < v_to and s.xact_id <> all (v_open)
              order by s.xact_id, s.id limit p_limit)) u
     order by u.xact_id, u.id
     limit p_limit;
end
$$;
comment on function public.fn_iu_trace_letters(pg_snapshot, pg_snapshot, xid8, uuid, integer) is
    'The next dead letters that are visible in p_tick and not in p_prev.';

-- Once more: all that the transactions wrote which wrote since then, up to now. No cursor is moved: ids are fixed, so a
-- backend takes a span that it has for the same one, and a repetition that was interrupted is begun again.
create function public.fn_iu_trace_again(p_since timestamptz)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
    with here (xid) as (
        -- All that is visible now, whatever its stamp: after a restore some lie beyond what is reached here.
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
    'Where an export that is repeated begins and ends, as fn_iu_trace_tick answers.';

-- Two exporters may meet for a moment, when a lease changes hands: so a position never goes back, and only the tick
-- that is open is ended. What a crash of the server undoes is exported again, so nobody waits for the disk.
--
-- The answer tells an exporter to give way: some worker was in the middle of a tick a moment ago, which it is while it
-- drains a backlog. Its batches are worth more than our spans, and their spans are lost to nobody.
create function public.fn_iu_trace_accepted(
    p_name text, p_tick pg_snapshot, p_attempt_xid xid8, p_attempt_id bigint, p_letter_xid xid8, p_letter_id uuid,
    p_done boolean, p_exported bigint, p_rejected bigint, p_ignored bigint)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    -- Of the row alone: whoever waited for its lock computes from what it is by then.
    update public.iu_trace_cursor t
       set prev = case when p_done then t.tick else t.prev end,
           tick = case when p_done then null else t.tick end,
           attempt_xid = case when p_done then '0' else greatest(t.attempt_xid, p_attempt_xid) end,
           attempt_id = case when p_done then 0
                             when (p_attempt_xid, p_attempt_id) > (t.attempt_xid, t.attempt_id) then p_attempt_id
                             else t.attempt_id end,
           letter_xid = case when p_done then '0' else greatest(t.letter_xid, p_letter_xid) end,
           letter_id = case when p_done then '00000000-0000-0000-0000-000000000000'
                            when (p_letter_xid, p_letter_id) > (t.letter_xid, t.letter_id) then p_letter_id
                            else t.letter_id end,
           exported = t.exported + p_exported, rejected = t.rejected + p_rejected, ignored = t.ignored + p_ignored,
           last_export_at = case when p_exported > 0 then clock_timestamp() else t.last_export_at end
     where t.name = p_name and t.tick::text = p_tick::text;
    return exists (select from public.iu_route_worker_cursor w
                    where w.tick is not null and w.last_run_at > clock_timestamp() - interval '2 seconds');
end
$$;
comment on function public.fn_iu_trace_accepted(text, pg_snapshot, xid8, bigint, xid8, uuid, boolean, bigint, bigint, bigint) is
    'Moves an export after a page was accepted; p_done ends its tick. True: routing is behind, and an export gives way.';

-- Retention ----------------------------------------------------------------------------------------------

-- What an export still has to read is not released: attempts are found by their keys, as the audit finds them. A stamp
-- that this history has not reached was restored: the reanchor has said what of that was not exported.
create or replace function public.fn_iu_retention_released(p_event_ref uuid)
returns boolean
language sql
stable
set plan_cache_mode = force_generic_plan
return not exists (select from public.iu_route_worker_cursor w
                     join public.iu_audit_missing m
                       on m.worker_name = w.worker_name and m.event_ref = p_event_ref and m.accepted_at is null)
   and not exists (select from public.iu_route_delivery d where d.event_ref = p_event_ref)
   -- Asked about every row: where nobody exports, that is all that is looked at.
   and (not exists (select from public.iu_trace_cursor)
        or not exists (select from (select r.route_code from public.iu_outbound_route r
                                    union select unnest(u.codes) from public.iu_audit u union select '(none)') k
                        cross join lateral (select a.xact_id from public.iu_route_attempt a
                                             where a.idempotency_key = 'outbound:' || k.route_code || ':' || p_event_ref) a
                         join public.iu_trace_cursor t on not pg_visible_in_snapshot(a.xact_id, t.prev)
                         where a.xact_id < pg_snapshot_xmax(pg_current_snapshot())));
comment on function public.fn_iu_retention_released(uuid) is
    'Whether every reader of the audit is done with this event: the audit misses nothing of it, '
    'it is on its way nowhere, and its attempts are exported.';
