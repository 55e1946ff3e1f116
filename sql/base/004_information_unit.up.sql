-- The business data: information units, their versions and their place in the tree; and the governed emitter.
--
-- Belongs to IU Core; this copy is for the embedded server and the tests.
-- needs: 001, 002, 003
-- locks: nothing that exists

create table public.information_unit (
    id                 uuid         not null default gen_random_uuid(),
    canonical_address  text         not null,
    title              text         not null,
    created_at         timestamptz  not null default now(),

    constraint information_unit_pkey primary key (id),
    constraint information_unit_address_unique unique (canonical_address)
);
comment on table public.information_unit is 'A unit of knowledge. The worker never changes it.';
comment on column public.information_unit.id is 'Identity of the unit, which is the subject of its events.';
comment on column public.information_unit.canonical_address is 'Human-readable address of the unit, unique.';
comment on column public.information_unit.title is 'Title of the unit.';
comment on column public.information_unit.created_at is 'Time at which the unit was created.';
comment on constraint information_unit_pkey on public.information_unit is 'Identity of the unit.';
comment on constraint information_unit_address_unique on public.information_unit is 'An address names one unit.';

create table public.unit_version (
    id           uuid         not null default gen_random_uuid(),
    unit_id      uuid         not null,
    version_seq  integer      not null,
    body         text         not null default '',
    actor_ref    text,
    created_at   timestamptz  not null default now(),

    constraint unit_version_pkey primary key (id),
    constraint unit_version_unit_fkey foreign key (unit_id) references public.information_unit (id),
    constraint unit_version_seq_unique unique (unit_id, version_seq),
    constraint unit_version_seq_positive check (version_seq >= 1)
);
comment on table public.unit_version is 'A version of a unit. The worker never changes it.';
comment on column public.unit_version.id is 'Identity of the version.';
comment on column public.unit_version.unit_id is 'Id of the unit.';
comment on column public.unit_version.version_seq is
    'Number of the version: 1 for the first one, then counted up. An event is emitted from 2 on.';
comment on column public.unit_version.body is 'Text of the version. It is never part of an event.';
comment on column public.unit_version.actor_ref is 'Author of the version.';
comment on column public.unit_version.created_at is 'Time at which the version was written.';
comment on constraint unit_version_pkey on public.unit_version is 'Identity of the version.';
comment on constraint unit_version_unit_fkey on public.unit_version is 'A version belongs to a unit.';
comment on constraint unit_version_seq_unique on public.unit_version is 'A unit has one version for each number.';
comment on constraint unit_version_seq_positive on public.unit_version is 'Versions are numbered from 1 on.';

create table public.iu_tree_path (
    unit_id  uuid     not null,
    path     text     not null,
    depth    integer  not null default 0,

    constraint iu_tree_path_pkey primary key (unit_id),
    constraint iu_tree_path_unit_fkey foreign key (unit_id) references public.information_unit (id)
);
comment on table public.iu_tree_path is 'The place of a unit in the tree. The worker never changes it.';
comment on column public.iu_tree_path.unit_id is 'Id of the unit.';
comment on column public.iu_tree_path.path is 'Addresses from the root, joined by slashes.';
comment on column public.iu_tree_path.depth is 'Number of ancestors.';
comment on constraint iu_tree_path_pkey on public.iu_tree_path is 'A unit has one place in the tree.';
comment on constraint iu_tree_path_unit_fkey on public.iu_tree_path is 'Only units have a place in the tree.';

-- Counts events that were refused because their type is not registered. A sequence, because the caller's transaction is
-- rolled back by the error, and a drawn number is not returned. The package reads the sequence if it exists.
create sequence public.iu_emit_refused_seq as bigint cache 1;
comment on sequence public.iu_emit_refused_seq is
    'Counts events that fn_iu_emit_event refused because their type is not registered and active.';
grant usage on sequence public.iu_emit_refused_seq to public;

create function public.fn_iu_emit_event(
    p_event_type         text,
    p_canonical_address  text,
    p_subject_ref        uuid,
    p_actor_ref          text,
    p_safe_payload       jsonb
)
returns uuid
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_type public.event_type_registry;
    v_id   uuid;
begin
    -- The business transaction must not fail because the gate is closed: no event is written and no error is raised.
    if not public.fn_iu_core_routes_enabled() then
        return null;
    end if;
    select r.* into v_type
      from public.event_type_registry r
     where r.event_domain = 'iu' and r.event_type = p_event_type and r.active;
    if not found then
        -- A closed gate is an operator's decision; an unregistered type is a mistake of the caller, and its event would
        -- be lost without notice.
        perform nextval('public.iu_emit_refused_seq');
        raise exception 'event type iu.% is not registered and active', p_event_type
            using errcode = 'undefined_object', hint = 'Register it in event_type_registry, or set active there.';
    end if;

    insert into public.event_outbox (
        event_domain, event_type, event_stream, delivery_lane, event_severity,
        event_subject_table, event_subject_ref, canonical_address, actor_ref,
        source_system, payload_classification, safe_payload)
    values (
        'iu', p_event_type, v_type.event_stream, v_type.delivery_lane, v_type.default_severity,
        'information_unit', p_subject_ref, p_canonical_address, p_actor_ref,
        'iu_core', 'safe_metadata', coalesce(p_safe_payload, '{}'))
    returning id into v_id;
    return v_id;
end
$$;
comment on function public.fn_iu_emit_event(text, text, uuid, text, jsonb) is
    'The governed emitter. Returns the id of the event; or null, without writing anything, while the master gate is '
    'closed. Raises if the type is not registered and active.';

create function public.fn_iu_outbound_on_version()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if new.version_seq > 1 then
        perform public.fn_iu_emit_event(
            'version_applied',
            (select u.canonical_address from public.information_unit u where u.id = new.unit_id),
            new.unit_id,
            new.actor_ref,
            pg_catalog.jsonb_build_object('unit_version_id', new.id, 'version_seq', new.version_seq));
    end if;
    return null;
end
$$;
comment on function public.fn_iu_outbound_on_version() is
    'Emits version_applied for every version after the first one, while the master gate is open.';

create trigger trg_iu_out_version
    after insert on public.unit_version
    for each row execute function public.fn_iu_outbound_on_version();
comment on trigger trg_iu_out_version on public.unit_version is 'Each new version of a unit emits an event.';

-- The route of the seed: an enabled dry run.
insert into public.iu_outbound_route
    (route_code, event_domain, event_type, event_stream, target_kind, target_ref, enabled, dry_run)
values
    ('iu.version_applied.workflow', 'iu', 'version_applied', 'update', 'workflow', 'event_outbox', true, true);
