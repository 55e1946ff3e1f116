-- The position of each event: the transaction that wrote it, and its number in the order of writing.
--
-- An event's position is (xact_id, event_seq): the transaction that wrote it, and a number drawn while it was written.
-- Neither created_at nor the number alone is an order of commits (docs/why/cursor.md). Together with snapshots, the
-- positions give each event to a cursor exactly once, whenever it commits.
--
-- needs: base (event_outbox)
-- calls: 007
-- locks: ACCESS EXCLUSIVE on event_outbox, for the catalogue change only: no table rewrite, no scan

-- Position -----------------------------------------------------------------------------------------------

-- CACHE must stay 1. With a larger cache a session could draw a low number late, and the numbers of two writers of one
-- subject would no longer follow the order in which they held its row lock.
create sequence public.event_outbox_event_seq as bigint cache 1;
comment on sequence public.event_outbox_event_seq is
    'Numbers events in the order of writing. Gaps and late arrivals are normal; CACHE must stay 1.';

-- A role that may insert into event_outbox must not need a new privilege because of this package.
grant usage on sequence public.event_outbox_event_seq to public;

-- Both defaults are constant for existing rows (pg_current_xact_id is STABLE): the table is not rewritten, and to a
-- cursor all older events appear to be written by one transaction, that of this migration. xact_id comes first: columns
-- are filled in this order, so the number is drawn after the xid is assigned.
alter table public.event_outbox
    add column xact_id      xid8    not null default pg_current_xact_id(),
    add column event_seq    bigint  not null default 0,
    add column traceparent  text    default nullif(current_setting('iu.traceparent', true), '');

alter table public.event_outbox
    alter column event_seq set default nextval('public.event_outbox_event_seq');

alter sequence public.event_outbox_event_seq owned by public.event_outbox.event_seq;

comment on column public.event_outbox.xact_id is
    'Top-level transaction that wrote the event; cursors compare it with snapshots. Set by a trigger.';
comment on column public.event_outbox.event_seq is
    'Order of writing, which is the order of commits for events of one subject. Set by a trigger.';
comment on column public.event_outbox.traceparent is
    'W3C trace context of the producer, from SET LOCAL iu.traceparent. Null: there was none.';

-- Stamp --------------------------------------------------------------------------------------------------

-- Unconditional: the values that a client sends in these two columns are never used, whether by an explicit value,
-- COPY, a logical replication worker or a data-only restore. An invented xact_id would lie before every cursor, so the
-- event would be lost; an invented event_seq would break the order of its subject.
create function public.fn_iu_outbox_stamp()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.xact_id   := pg_current_xact_id();
    new.event_seq := nextval('public.event_outbox_event_seq');
    return new;
end
$$;
comment on function public.fn_iu_outbox_stamp() is
    'Sets xact_id and event_seq of an event to the current transaction and the next number.';

-- "zz": triggers fire in the order of their names, and no other trigger may change the stamp afterwards.
create trigger zz_event_outbox_stamp
    before insert on public.event_outbox
    for each row execute function public.fn_iu_outbox_stamp();
comment on trigger zz_event_outbox_stamp on public.event_outbox is
    'Stamps every inserted event, even under session_replication_role = replica.';

create trigger zz_event_outbox_restamp
    before update of event_domain on public.event_outbox
    for each row
    when (new.event_domain is distinct from old.event_domain)
    execute function public.fn_iu_outbox_stamp();
comment on trigger zz_event_outbox_restamp on public.event_outbox is
    'Stamps an event that moves to another domain, because the cursor of that domain may have passed its old position.';

alter table public.event_outbox enable always trigger zz_event_outbox_stamp;
alter table public.event_outbox enable always trigger zz_event_outbox_restamp;

-- Anchor -------------------------------------------------------------------------------------------------

-- Transaction ids are valid only in their own cluster. A dump contains the stored xact_id, but the row's own xmin is
-- that of the restoring transaction: if the two differ, the history is foreign and cursors must not be believed. VACUUM
-- (FULL, FREEZE) and pg_upgrade keep xmin, so they cause no alarm. The row is therefore inserted at the top level of a
-- transaction, never inside a savepoint, and never updated.
create table public.iu_outbox_anchor (
    one         boolean      not null default true,
    lineage     uuid         not null default gen_random_uuid(),
    xact_id     xid8         not null default pg_current_xact_id(),
    created_at  timestamptz  not null default now(),

    constraint iu_outbox_anchor_pkey primary key (one),
    constraint iu_outbox_anchor_one check (one)
);
comment on table public.iu_outbox_anchor is
    'One row that shows whether this is the history in which the cursors were written. It must never be updated.';
comment on column public.iu_outbox_anchor.one is 'Always true: the table has one row.';
comment on column public.iu_outbox_anchor.lineage is 'Identity of this history; every cursor stores it.';
comment on column public.iu_outbox_anchor.xact_id is
    'The transaction that inserted this row. It equals the xmin of the row in its own history.';
comment on column public.iu_outbox_anchor.created_at is 'Time from which this history is valid.';
comment on constraint iu_outbox_anchor_pkey on public.iu_outbox_anchor is 'The table has one row.';
comment on constraint iu_outbox_anchor_one on public.iu_outbox_anchor is 'The table has one row.';

insert into public.iu_outbox_anchor default values;

-- Home ---------------------------------------------------------------------------------------------------

-- The anchor cannot detect a physical copy, which contains it unchanged. These two tables cover three such cases:
--
--   * pg_createsubscriber gives a copy another system identifier, and its transaction ids continue. Cursors that are
--     replicated into it look like its own. pg_upgrade also makes another identifier, but it changes the major version
--     as well, and nothing else changes that without another xmin of the anchor.
--   * A clone that is started beside its original has the same identifier. Only its clients can tell the two servers
--     apart: by the address, or by a name that they were given. So each consumer names its site. The first site is
--     accepted. A further one is accepted while another consumer delivers here, which is not the case in a clone, or
--     when an operator accepts it. A consumer at an unknown site delivers nothing.
--   * A cursor that lies ahead of its cluster would be believed again as soon as transaction ids have passed it, and
--     the events in between would be skipped. So such a refusal is stored until a reanchor.
create table public.iu_outbox_home (
    one                boolean      not null default true,
    system_identifier  bigint       default (pg_control_system()).system_identifier,
    major              integer      not null default current_setting('server_version_num')::integer / 10000,
    refusal            text,
    refused_at         timestamptz,

    constraint iu_outbox_home_pkey primary key (one),
    constraint iu_outbox_home_one check (one)
);
comment on table public.iu_outbox_home is
    'One row: the cluster in which the cursors were written, and a stored refusal.';
comment on column public.iu_outbox_home.one is 'Always true: the table has one row.';
comment on column public.iu_outbox_home.system_identifier is
    'System identifier of the cluster in which the cursors were written.';
comment on column public.iu_outbox_home.major is
    'Major version of that cluster. pg_upgrade changes both it and the system identifier.';
comment on column public.iu_outbox_home.refusal is
    'Reason why no cursor is believed until a reanchor: cursor_ahead or foreign_system. Null: there is none.';
comment on column public.iu_outbox_home.refused_at is 'Time at which the refusal was stored. Null: there is none.';
comment on constraint iu_outbox_home_pkey on public.iu_outbox_home is 'The table has one row.';
comment on constraint iu_outbox_home_one on public.iu_outbox_home is 'The table has one row.';

insert into public.iu_outbox_home default values;

create table public.iu_outbox_site (
    site         text         not null,
    seen_at      timestamptz  not null default clock_timestamp(),
    accepted_at  timestamptz,
    accepted_by  text,

    constraint iu_outbox_site_pkey primary key (site)
);
comment on table public.iu_outbox_site is
    'The sites from which consumers reach this database. A consumer at a site that is not accepted delivers nothing.';
comment on column public.iu_outbox_site.site is
    'The name that the consumer was given (IU_LISTEN_SITE), otherwise the address that it connects to.';
comment on column public.iu_outbox_site.seen_at is 'Time at which a consumer at this site last began a session.';
comment on column public.iu_outbox_site.accepted_at is
    'Time from which consumers at this site may deliver. Null: they may not.';
comment on column public.iu_outbox_site.accepted_by is
    'The person who accepted the site, or the reason why it was accepted automatically.';
comment on constraint iu_outbox_site_pkey on public.iu_outbox_site is 'A site is listed once.';

create function public.fn_iu_outbox_refuse(p_refusal text)
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
create function public.fn_iu_outbox_admission(p_site text, p_vouched boolean)
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
create function public.fn_iu_outbox_tick()
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

create function public.fn_iu_outbox_refusal(p_lineage uuid, p_prev pg_snapshot)
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

-- Snapshot -----------------------------------------------------------------------------------------------

-- The length of the text form of a JSON value cannot be derived from its stored size: compression stores 200 MB of one
-- character in 2.4 MB, a control character becomes six characters, and 1e131071, which is stored in 10 bytes, has 131
-- 072 digits. Converting the value to find out can take minutes, or fail. So the size is bounded first: by the binary
-- form, and by the count of its long numbers.
create function public.fn_iu_json_exceeds(p_value jsonb, p_limit bigint)
returns boolean
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    -- The concatenation is a copy without compression.
    v_bytes bigint;
    v_long  bigint;
begin
    v_bytes := pg_column_size(case jsonb_typeof(p_value) when 'object' then p_value || '{}' when 'array' then p_value || '[]'
                              else jsonb_build_array(p_value) end);
    if v_bytes > 4 * p_limit then
        return true;
    end if;
    -- Numbers of more than 30 digits have 310 digits at most, unless they are beyond 1e308 or 1e-308.
    v_long := 310 * jsonb_array_length(jsonb_path_query_array(p_value,
        'strict $.** ? (@ > 1e30 || @ < -1e30 || (@ < 1e-30 && @ > 0) || (@ > -1e-30 && @ < 0))'));
    if v_long > 0 then
        v_long := v_long + 131072 * jsonb_array_length(jsonb_path_query_array(p_value,
            'strict $.** ? (@ > 1e308 || @ < -1e308)'));
        v_long := v_long + 16400 * jsonb_array_length(jsonb_path_query_array(p_value,
            'strict $.** ? ((@ < 1e-308 && @ > 0) || (@ > -1e-308 && @ < 0))'));
    end if;
    if v_long > 4 * p_limit then
        return true;
    end if;
    return 6 * v_bytes + v_long > p_limit and octet_length(p_value::text) > p_limit;
exception when others then
    -- An error for an excessive size has no SQLSTATE of its own: 54000, 53200 and XX000 all occur.
    return true;
end
$$;
comment on function public.fn_iu_json_exceeds(jsonb, bigint) is
    'Whether the text form of a JSON value has more than p_limit bytes, or its binary form more than four times as '
    'many. A value whose text may have more than about 25 times p_limit bytes is never converted.';

-- A dead letter keeps its whole event. An event can be too large for that: as jsonb a row must stay below 256 MB, as
-- text below 1 GB, and a payload of 200 MB of control characters has a text form of 1.2 GB. A snapshot that cannot be
-- stored fails the transaction that gives the event up, and one that cannot be read as text fails every reader of the
-- dead letter. Such a snapshot keeps only the identifying columns, and too_large; a replay reads the event from the
-- outbox.
create function public.fn_iu_event_snapshot(p_event_id uuid)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
    v_limit constant integer := 64 * 1024 * 1024;
    v_event jsonb;
begin
    begin
        select to_jsonb(o) into v_event from public.event_outbox o where o.id = p_event_id;
        if v_event is null or not public.fn_iu_json_exceeds(v_event, v_limit) then
            return v_event;
        end if;
    exception when others then
        -- An error for an excessive size has no SQLSTATE of its own: 54000, 53200 and XX000 all occur.
        null;
    end;
    select jsonb_build_object(
               'id', o.id, 'event_domain', left(o.event_domain::text, 1000), 'event_type', left(o.event_type::text, 1000),
               'event_stream', left(o.event_stream::text, 1000),
               'event_subject_table', left(o.event_subject_table::text, 1000),
               'event_subject_ref', o.event_subject_ref,
               'canonical_address', left(o.canonical_address::text, 1000), 'actor_ref', left(o.actor_ref::text, 1000),
               'source_system', left(o.source_system::text, 1000), 'correlation_id', left(o.correlation_id::text, 1000),
               'occurred_at', o.occurred_at, 'created_at', o.created_at, 'event_seq', o.event_seq,
               'traceparent', public.fn_iu_trace_context(o.traceparent),
               'too_large', true, 'stored_bytes', pg_column_size(o.safe_payload))
      into v_event
      from public.event_outbox o
     where o.id = p_event_id;
    return v_event;
end
$$;
comment on function public.fn_iu_event_snapshot(uuid) is
    'An event for its dead letter: the whole row; or, if its text form exceeds 64 MiB, the identifying columns, with '
    'too_large and the stored size of its payload. Null: there is no such event.';
