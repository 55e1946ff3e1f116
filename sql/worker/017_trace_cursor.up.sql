-- The position of each trace export (functions/traces).
--
-- The algorithm is that of the worker's cursor (009): prev and tick are snapshots, and a
-- tick is a set of rows that never changes. There are two differences. The order of spans does not matter, because
-- their ids and times are fixed; so both tables are read in the order of the index (xact_id, id), which needs no floor
-- and no sort. And the position moves when the collector has accepted a page, not when the page was read: at least
-- once.
--
-- needs: nothing
-- locks: nothing that other sessions use

create table public.iu_trace_cursor (
    name             text         not null,
    lineage          uuid         not null,
    prev             pg_snapshot  not null,
    tick             pg_snapshot,
    attempt_xid      xid8         not null default '0',
    attempt_id       bigint       not null default 0,
    dead_letter_xid  xid8         not null default '0',
    dead_letter_id   uuid         not null default '00000000-0000-0000-0000-000000000000',
    exported         bigint       not null default 0,
    rejected         bigint       not null default 0,
    ignored          bigint       not null default 0,
    last_export_at   timestamptz,
    created_at       timestamptz  not null default now(),

    constraint iu_trace_cursor_pkey primary key (name)
)
-- Every page updates the row; free space in the block keeps those updates HOT.
with (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

comment on table public.iu_trace_cursor is 'The position of each trace export. No row: nothing was ever exported.';
comment on column public.iu_trace_cursor.name is 'Name of the export.';
comment on column public.iu_trace_cursor.lineage is
    'The history in which this cursor was written (iu_outbox_anchor.lineage).';
comment on column public.iu_trace_cursor.prev is
    'Rows that are visible in this snapshot were accepted, or are older than the export.';
comment on column public.iu_trace_cursor.tick is 'Snapshot of the tick that is partly exported. Null: none is.';
comment on column public.iu_trace_cursor.attempt_xid is
    'Transaction of the last accepted attempt of the tick. 0: none yet.';
comment on column public.iu_trace_cursor.attempt_id is 'Id of the last accepted attempt of the tick. 0: none yet.';
comment on column public.iu_trace_cursor.dead_letter_xid is
    'Transaction of the last accepted dead letter of the tick. 0: none yet.';
comment on column public.iu_trace_cursor.dead_letter_id is
    'Id of the last accepted dead letter of the tick. Only zeros: none yet.';
comment on column public.iu_trace_cursor.exported is 'Spans that the collector accepted.';
comment on column public.iu_trace_cursor.rejected is 'Spans that the collector rejected for good.';
comment on column public.iu_trace_cursor.ignored is 'Events with a malformed trace context, which was ignored.';
comment on column public.iu_trace_cursor.last_export_at is
    'Time at which spans were last accepted. Null: none ever were.';
comment on column public.iu_trace_cursor.created_at is
    'Time at which the export began. Older rows are exported with --since.';
comment on constraint iu_trace_cursor_pkey on public.iu_trace_cursor is 'An export has one cursor.';
