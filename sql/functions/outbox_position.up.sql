-- The position of a cursor: whether this database is the one in which it was written, the tick, and whether an event
-- lies before it.
--
-- kind: repeatable
-- needs: 005, 008
-- locks: nothing that other sessions use

-- Admission ----------------------------------------------------------------------------------------------

create or replace function public.fn_iu_outbox_refuse(p_refusal text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
begin
    update public.iu_outbox_home h set refusal = p_refusal, refused_at = clock_timestamp() where h.refusal is null;
end
$$;
comment on function public.fn_iu_outbox_refuse(text) is
    'Stores a refusal until a reanchor. If one is stored already, it stays.';

-- Called once in a session, because it reads a file of the server. p_vouched: another consumer delivers here now.
create or replace function public.fn_iu_outbox_admission(p_site text, p_vouched boolean)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    h        public.iu_outbox_home;
    s        public.iu_outbox_site;
    v_system bigint;
    v_major  constant integer := current_setting('server_version_num')::integer / 10000;
begin
    if pg_is_in_recovery() then
        return 'standby';
    end if;
    if exists (select from pg_catalog.pg_class c
                where c.relnamespace = 'public'::regnamespace and c.relrowsecurity
                  and (c.relname in ('dot_config', 'event_type_registry', 'event_outbox') or c.relname like 'iu\_%')
                  and row_security_active(c.oid)) then
        return 'row_security';
    end if;
    begin
        select c.system_identifier into v_system from pg_control_system() c;
    exception when insufficient_privilege then
        null;
    end;
    select x.* into h from public.iu_outbox_home x;
    if h.system_identifier <> v_system and h.major = v_major then
        perform public.fn_iu_outbox_refuse('foreign_system');
    elsif h.system_identifier is distinct from v_system and v_system is not null or h.major <> v_major then
        update public.iu_outbox_home x set system_identifier = coalesce(v_system, x.system_identifier), major = v_major;
    end if;
    if p_site is null then
        return null;
    end if;
    perform from public.iu_outbox_home x for update;
    insert into public.iu_outbox_site as x (site) values (p_site)
    on conflict (site) do update set seen_at = clock_timestamp()
     where x.seen_at not between clock_timestamp() - interval '10 seconds' and clock_timestamp();
    select x.* into s from public.iu_outbox_site x where x.site = p_site;
    if s.accepted_at is null
       and (p_vouched or not exists (select from public.iu_outbox_site x where x.site <> p_site)) then
        update public.iu_outbox_site x
           set accepted_at = clock_timestamp(),
               accepted_by = case when p_vouched then 'beside a consumer that delivers' else 'the first consumer' end
         where x.site = p_site
        returning x.accepted_at into s.accepted_at;
    end if;
    return case when s.accepted_at is null then 'foreign_site' end;
end
$$;
comment on function public.fn_iu_outbox_admission(text, boolean) is
    'Null if a consumer at this site may work here; otherwise the reason: standby, row_security or foreign_site. '
    'Stores the refusal foreign_system if the cluster is another one.';

-- Tick ---------------------------------------------------------------------------------------------------

-- GetSnapshotData leaves the caller's own xid out of the in-progress list, so that the caller sees its own rows. A tick
-- must not do that: rows that this transaction writes after the tick was taken would count as consumed. So the own xid
-- is added as in progress. xmin needs no change, because the xmin of a snapshot is never above the xid of the backend
-- that took it.
create or replace function public.fn_iu_outbox_tick()
returns pg_snapshot
language plpgsql
-- Stable: it sees the snapshot of the statement that calls it.
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_now pg_snapshot := pg_current_snapshot();
    v_own xid8 := pg_current_xact_id_if_assigned();
begin
    if v_own is null or v_own >= pg_snapshot_xmax(v_now) then
        return v_now;
    end if;
    return (pg_snapshot_xmin(v_now)::text || ':' || pg_snapshot_xmax(v_now)::text || ':'
            || (select string_agg(x.xid::text, ',' order by x.xid)
                  from (select pg_snapshot_xip(v_now) union select v_own) x(xid)))::pg_snapshot;
end
$$;
comment on function public.fn_iu_outbox_tick() is
    'The current snapshot, with the caller''s own transaction marked as in progress. It must be taken in a statement '
    'after the one that locked the cursor.';

-- Refusal ------------------------------------------------------------------------------------------------

create or replace function public.fn_iu_outbox_refusal(p_lineage uuid, p_prev pg_snapshot)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_lineage uuid;
    v_here    text;
    v_there   text;
    v_kept    text;
begin
    -- On a standby pg_current_snapshot() lists no transactions in progress, so late commits would be lost.
    if pg_is_in_recovery() then
        return 'standby';
    end if;
    select x.lineage, x.xmin::text, (x.xact_id::text::numeric % 4294967296)::text,
           (select h.refusal from public.iu_outbox_home h)
      into v_lineage, v_here, v_there, v_kept
      from public.iu_outbox_anchor x;
    return case
               when v_lineage is null then 'anchor_missing'
               when v_here <> v_there then 'foreign_history'
               when p_lineage is distinct from v_lineage then 'foreign_cursor'
               when pg_snapshot_xmax(p_prev) > pg_snapshot_xmax(pg_current_snapshot()) then 'cursor_ahead'
               else v_kept
           end;
end
$$;
comment on function public.fn_iu_outbox_refusal(uuid, pg_snapshot) is
    'Null if a cursor with this lineage and position may be believed here; otherwise the reason: standby, '
    'anchor_missing, foreign_history, foreign_cursor, cursor_ahead or foreign_system. The last two are stored until a '
    'reanchor.';

-- Consumed -----------------------------------------------------------------------------------------------

-- The algorithm of the cursor for one event, in one place, for health, the completeness check and retention. The batch
-- and the backlog view contain it in expanded form, because an index must serve it there; tests compare them.
--
-- A SQL-standard body: its names are resolved at creation, and without a SET clause it can be inlined.
create or replace function public.fn_iu_outbox_consumed(
    p_cursor public.iu_route_worker_cursor, p_xact_id xid8, p_event_seq bigint, p_id uuid)
returns boolean
language sql
stable
return coalesce(pg_visible_in_snapshot(p_xact_id, (p_cursor).prev), false)
    or coalesce(pg_visible_in_snapshot(p_xact_id, (p_cursor).tick)
                and (p_event_seq, p_id) <= ((p_cursor).pos_seq, (p_cursor).pos_id), false)
    or coalesce(p_xact_id = (p_cursor).own_xid and p_event_seq <= (p_cursor).own_seq, false);
comment on function public.fn_iu_outbox_consumed(public.iu_route_worker_cursor, xid8, bigint, uuid) is
    'Whether the worker of this cursor has read the event with this position.';
