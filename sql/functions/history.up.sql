-- The reanchor: adopts a foreign history after a restore. Unread events get a new stamp; all others count as read.
--
-- kind: repeatable
-- needs: 005, 006, 008, 009, 017, functions/outbox_position
-- locks: nothing that other sessions use

-- Verdict on an event ------------------------------------------------------------------------------------
--
-- After a logical copy, three kinds of events are in one table: events that the copied cursor had read, events that it
-- had not read, and events that were written here before the foreign history was noticed. The stamps of the first two
-- are transactions of the old cluster and those of the third are transactions of this one; the number alone does not
-- tell them apart.
--
--   * An old stamp is judged by the cursor that was copied with it: the algorithm needs no cluster, only a cursor and
--     a stamp of the same one.
--   * hi_seq identifies new events. Each event that the cursor had read had drawn its number by then, and a dump
--     contains the sequence. So an event with a number above hi_seq is unread in any history, even in a copy of a
--     copy.
--   * If the sequence was not copied (logical replication before PostgreSQL 19, an old setval), numbers prove
--     nothing, but rows do. A restored row has the xmin of the restore. An event that was written or replicated here
--     has its own stamp as xmin, or, under a savepoint, a higher one. Such an event is uncertain.
--   * A cursor of another lineage, one from the future, or one without an anchor proves nothing: each event that it
--     would call read is uncertain.
--
-- Uncertain events are read again, and idempotency keys suppress second decisions, unless the operator knows from which
-- time on events may be missing (p_since). Then events created since that time are read again, and earlier uncertain
-- ones are not.
create or replace function public.fn_iu_outbox_full_xid(p_xid xid, p_near xid8)
returns xid8
language sql
immutable
return greatest(0, p_near::text::bigint
                   + (((p_xid::text::bigint - p_near::text::bigint + 2147483648) & 4294967295) - 2147483648))::text::xid8;
comment on function public.fn_iu_outbox_full_xid(xid, xid8) is
    'The full transaction id with these lower 32 bits that is nearest to p_near.';

create or replace function public.fn_iu_outbox_verdict(
    p_cursor public.iu_route_worker_cursor, p_believed boolean, p_arrived xid8,
    p_xact_id xid8, p_event_seq bigint, p_id uuid, p_xmin xid)
returns text
language sql
stable
return case when p_event_seq > (p_cursor).hi_seq
                 or not public.fn_iu_outbox_consumed(p_cursor, p_xact_id, p_event_seq, p_id) then 'unread'
            when not p_believed then 'uncertain'
            when p_arrived is not null
                 and (p_xact_id::xid = p_xmin
                      or (p_xact_id > p_arrived and p_xact_id <= public.fn_iu_outbox_full_xid(p_xmin, p_arrived)))
                 then 'uncertain'
            else 'read'
       end;
comment on function public.fn_iu_outbox_verdict(
    public.iu_route_worker_cursor, boolean, xid8, xid8, bigint, uuid, xid) is
    'Whether the worker of this cursor has read an event, in any history: read, unread or uncertain. p_believed: '
    'cursor and anchor belong to one history. p_arrived: the transaction that brought the anchor here; null if the '
    'anchor was created here.';

-- Events that are left out were read by all workers, were written elsewhere, and are visible in p_now.
create or replace function public.fn_iu_outbox_judged(
    p_believed text[], p_arrived xid8, p_now pg_snapshot, p_since timestamptz, p_low_xid xid8, p_low_seq bigint)
returns table (part oid, tid tid, event_domain text, unread_by text[], uncertain_by text[], visible boolean, again boolean)
language sql
stable
begin atomic
    select o.tableoid, o.ctid, o.event_domain, j.unread_by, j.uncertain_by, v.visible,
           j.unread_by is not null
           or coalesce(o.created_at >= p_since, j.uncertain_by is not null)
           -- committed after p_now was taken; otherwise it could not be visible here
           or (not v.visible and o.xact_id < (select pg_snapshot_xmax(pg_current_snapshot())))
      from public.event_outbox o
     cross join lateral (select pg_visible_in_snapshot(o.xact_id, p_now)) v(visible)
     cross join lateral (
           select array_agg(w.worker_name) filter (where x.verdict = 'unread'),
                  array_agg(w.worker_name) filter (where x.verdict = 'uncertain')
             from public.iu_route_worker_cursor w
            cross join lateral (
                  select public.fn_iu_outbox_verdict(w, w.worker_name = any (p_believed), p_arrived,
                                                     o.xact_id, o.event_seq, o.id, o.xmin)) x(verdict)
            where w.event_domain = o.event_domain) j(unread_by, uncertain_by)
     where o.event_domain in (select w.event_domain from public.iu_route_worker_cursor w)
       and (o.xact_id >= p_low_xid or o.event_seq > p_low_seq or o.created_at >= p_since
            or (p_arrived is not null and o.xact_id::xid = o.xmin));
end;
comment on function public.fn_iu_outbox_judged(text[], xid8, pg_snapshot, timestamptz, xid8, bigint) is
    'The events of the workers'' domains that a reanchor has to check: the workers that have not read them, whether '
    'p_now shows them, and whether they are to be read again.';

-- Parts of the reanchor ----------------------------------------------------------------------------------

-- The effect of a reanchor, for --plan. The parameters are those of fn_iu_outbox_judged.
create or replace function public.fn_iu_outbox_reanchor_plan(
    p_believed text[], p_arrived xid8, p_now pg_snapshot, p_since timestamptz, p_low_xid xid8, p_low_seq bigint)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_agg(jsonb_build_object(
               'worker_name', w.worker_name, 'event_domain', w.event_domain,
               'refusal', public.fn_iu_outbox_refusal(w.lineage, w.prev),
               'events', (select count(*) from public.event_outbox o where o.event_domain = w.event_domain),
               'unread', n.unread, 'uncertain', n.uncertain, 'again', n.again, 'past', n.past)
               order by w.worker_name), '[]')
      from public.iu_route_worker_cursor w
     cross join lateral (
           select count(*) filter (where w.worker_name = any (j.unread_by)) as unread,
                  count(*) filter (where w.worker_name = any (j.uncertain_by)) as uncertain,
                  count(*) filter (where j.again) as again,
                  count(*) filter (where not j.again and not j.visible) as past
             from public.fn_iu_outbox_judged(p_believed, p_arrived, p_now, p_since, p_low_xid, p_low_seq) j
            where j.event_domain = w.event_domain) n;
$$;
comment on function public.fn_iu_outbox_reanchor_plan(text[], xid8, pg_snapshot, timestamptz, xid8, bigint) is
    'What a reanchor would do, as a JSON array with one object for each worker.';

-- Trace exports start from the new anchor as well; their old positions show, together with old stamps, the rows that
-- were not exported. A row that is older than the last anchor and stamped beyond it was restored before that anchor was
-- made; the reanchor of that time has reported it.
create or replace function public.fn_iu_trace_reanchor(
    p_lineage uuid, p_now pg_snapshot, p_foreign boolean, p_anchor xid8, p_anchored_at timestamptz)
returns timestamptz
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_since timestamptz;
begin
    select min(least(case when p_foreign and t.last_export_at is not null
                          then greatest(t.last_export_at, p_anchored_at) end, u.since)) into v_since
      from public.iu_trace_cursor t
     cross join lateral (
           select min(x.created_at) as since
             from (select a.created_at, a.xact_id from public.iu_route_attempt a
                   union all
                   select d.created_at, d.xact_id from public.iu_route_dead_letter d) x
            where not pg_visible_in_snapshot(x.xact_id, t.prev)
              and (x.created_at < p_anchored_at and x.xact_id > p_anchor) is not true) u;
    update public.iu_trace_cursor t
       set lineage = p_lineage, prev = p_now, tick = null, attempt_xid = '0', attempt_id = 0, dead_letter_xid = '0',
           dead_letter_id = '00000000-0000-0000-0000-000000000000';
    return v_since;
end
$$;
comment on function public.fn_iu_trace_reanchor(uuid, pg_snapshot, boolean, xid8, timestamptz) is
    'Moves every trace export to the new anchor. Answers the time since which rows were not exported; null: all were.';

-- Reanchor -----------------------------------------------------------------------------------------------
--
-- No session waits for a reanchor. It takes no lock on event_outbox, because a snapshot separates the producers equally
-- well. v_now is taken first and becomes the new prev: an event that commits later has a stamp that v_now does not
-- show, and is read once. Events that committed before are visible to the UPDATE, whose snapshot is later:
--
--   * unread by a worker, or uncertain: stamped with this transaction, which is in progress in v_now;
--   * committed between v_now and the UPDATE: stamped with this transaction as well;
--   * read by all workers, but with a stamp that v_now does not show, as in a cluster with lower transaction ids: the
--     event would become new when this cluster reaches that id. It is stamped with transaction 3, which every cursor
--     has passed.
--
-- One statement does this, under one snapshot: in a second statement, an event that commits in between would look like
-- the third kind. Rows are updated by ctid, in their partition if there is one, so that an event that another session
-- stamps meanwhile is left alone.
--
-- The sequence is set beyond every existing number, because otherwise new events would overtake old ones of their
-- subject. It is set another thousand further, so that numbers that are drawn at the same moment are not drawn again.
create or replace function public.fn_iu_outbox_reanchor(
    p_since timestamptz default null, p_force boolean default false, p_plan boolean default false)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
set jit = off
as $$
declare
    v_me        xid8;
    v_now       pg_snapshot;
    v_lineage   uuid;
    v_arrived   xid8;
    v_foreign   boolean;
    v_believed  text[];
    v_strangers bigint;
    v_low_xid   xid8;
    v_low_seq   bigint;
    v_last      bigint;
    v_highest   bigint;
    v_touched   bigint;
    v_again     bigint;
    v_traces    timestamptz;
    v_anchor    xid8;
    v_anchored  timestamptz;
begin
    if pg_is_in_recovery() then
        raise exception 'this server is a standby' using errcode = 'read_only_sql_transaction',
            hint = 'Connect to the primary.';
    end if;
    if not p_plan then
        if pg_current_xact_id_if_assigned() is not null then
            raise exception 'this transaction has written already' using errcode = 'active_sql_transaction',
                hint = 'Call fn_iu_outbox_reanchor first in a transaction of its own.';
        end if;
        -- Batches, cursor resets and another reanchor wait here. The tick is taken in a later statement, as in a batch.
        perform from public.iu_route_worker_cursor w order by w.worker_name for update;
        if public.fn_iu_route_worker_enabled() then
            raise exception 'the worker gate is open' using errcode = 'object_not_in_prerequisite_state',
                hint = 'Close it first: iu-listen gate close worker';
        end if;
        v_me := pg_current_xact_id();
    end if;

    select public.fn_iu_outbox_tick() into v_now;
    select a.lineage, case when a.xmin::text <> (a.xact_id::text::numeric % 4294967296)::text
                           then public.fn_iu_outbox_full_xid(a.xmin, pg_snapshot_xmax(v_now)) end,
           a.xact_id, a.created_at
      into v_lineage, v_arrived, v_anchor, v_anchored
      from public.iu_outbox_anchor a;
    select bool_or(r.refusal is not null),
           coalesce(array_agg(w.worker_name) filter (where b.believed), '{}'),
           count(*) filter (where b.believed is not true),
           least(min(pg_snapshot_xmin(w.prev)), pg_snapshot_xmin(v_now), v_arrived), min(w.hi_seq), max(w.hi_seq)
      into v_foreign, v_believed, v_strangers, v_low_xid, v_low_seq, v_highest
      from public.iu_route_worker_cursor w
     cross join lateral (select public.fn_iu_outbox_refusal(w.lineage, w.prev)) r(refusal)
     cross join lateral (select w.lineage = v_lineage
                                and (r.refusal is null or r.refusal = 'foreign_history')) b(believed);
    if v_strangers > 0 then
        v_low_xid := '0';
    end if;
    -- Computed for each domain: its highest number is the last one in event_outbox_order_idx.
    select greatest(v_highest, max(d.highest)) into v_highest
      from (select (select max(o.event_seq) from public.event_outbox o where o.event_domain = r.event_domain)
              from (select distinct t.event_domain from public.event_type_registry t) r) d(highest);
    select s.last_value - (not s.is_called)::integer into v_last from public.event_outbox_event_seq s;

    if p_plan then
        return jsonb_build_object('status', 'planned', 'foreign', coalesce(v_foreign, false),
                                  'numbers_behind', greatest(v_highest - v_last, 0),
                                  'workers', public.fn_iu_outbox_reanchor_plan(
                                      v_believed, v_arrived, v_now, p_since, v_low_xid, v_low_seq));
    end if;

    if v_foreign is not true and not p_force then
        raise exception 'no worker refuses: there is no foreign history' using errcode = 'object_not_in_prerequisite_state',
            hint = 'To read events again nevertheless, give --force, and --since for the time from which.';
    end if;
    if v_last < v_highest then
        perform setval('public.event_outbox_event_seq', v_highest + 1000);
    end if;
    update public.event_outbox o
       set xact_id = case when j.again then v_me else '3' end
      from public.fn_iu_outbox_judged(v_believed, v_arrived, v_now, p_since, v_low_xid, v_low_seq) j
     where o.tableoid = j.part and o.ctid = j.tid and (j.again or not j.visible);
    get diagnostics v_touched = row_count;
    select count(*) into v_again
      from public.event_outbox o
     where o.xact_id = v_me
       and o.event_domain in (select w.event_domain from public.iu_route_worker_cursor w);

    -- Inserted and not updated: xmin and xact_id of the anchor must be this transaction.
    delete from public.iu_outbox_anchor;
    insert into public.iu_outbox_anchor default values returning lineage into v_lineage;
    delete from public.iu_outbox_home;
    insert into public.iu_outbox_home default values;
    update public.iu_route_worker_cursor w
       set lineage = v_lineage, prev = v_now, tick = null, tick_floor = null, pos_seq = null, pos_id = null,
           own_xid = null, own_seq = null,
           hi_seq = (select s.last_value - (not s.is_called)::integer from public.event_outbox_event_seq s);
    v_traces := public.fn_iu_trace_reanchor(v_lineage, v_now, v_foreign, v_anchor, v_anchored);
    if public.fn_iu_outbox_refusal(v_lineage, v_now) is not null then
        raise exception 'the anchor was made in a savepoint' using errcode = 'active_sql_transaction',
            hint = 'Call fn_iu_outbox_reanchor at the top level of a transaction.';
    end if;
    return jsonb_build_object('status', 'reanchored', 'lineage', v_lineage, 'again', v_again,
                              'past', v_touched - v_again, 'traces_since', v_traces);
end
$$;
comment on function public.fn_iu_outbox_reanchor(timestamptz, boolean, boolean) is
    'Adopts the present history in one transaction, while the worker gate is closed; other sessions do not wait. '
    'p_since: events created since then are read again. p_force: works even if no worker refuses. p_plan: answers the '
    'effect and changes nothing.';
