-- The position of each event: the transaction that wrote it, and its number in the order of writing.
--
-- An event's position is (xact_id, event_seq): the transaction that wrote it, and a number drawn while it was written.
-- Neither created_at nor the number alone is an order of commits (docs/why/cursor.md). Together with snapshots, the
-- positions give each event to a cursor exactly once, whenever it commits.
--
-- needs: functions/outbox_stamp
-- locks: ACCESS EXCLUSIVE on event_outbox, for the catalogue change only: no table rewrite, no scan

-- Position -----------------------------------------------------------------------------------------------

-- CACHE must stay 1. With a larger cache a session could draw a low number late, and the numbers of two producers of one
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

-- Triggers -----------------------------------------------------------------------------------------------

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
