-- The outbox: an append-only log shared by many domains, and the registry of the event types that may be written to it.
--
-- The neutral base, for applications without IU Core: types and streams are open, subjects have any text as id, and the
-- payload may have any keys. It has the columns of the outbox of IU Core, so the package is the same on both.
-- needs: 001
-- locks: nothing that exists

create table public.event_type_registry (
    event_domain      text     not null default 'iu',
    event_type        text     not null,
    event_stream      text     not null default 'event',
    delivery_lane     text     not null default 'immediate',
    default_severity  text     not null default 'info',
    active            boolean  not null default true,

    constraint event_type_registry_type_unique unique (event_domain, event_type)
);

comment on table public.event_type_registry is
    'The event types that may be written to event_outbox; an unknown or inactive type is rejected.';
comment on column public.event_type_registry.event_domain is
    'Domain that owns the event type. The default worker reads domain iu.';
comment on column public.event_type_registry.event_type is 'Name of the event type, in the past tense.';
comment on column public.event_type_registry.event_stream is
    'The only stream on which events of this type are written.';
comment on column public.event_type_registry.delivery_lane is 'The only lane in which events of this type are written.';
comment on column public.event_type_registry.default_severity is 'Severity of an event if its emitter gives none.';
comment on column public.event_type_registry.active is 'False: events of this type are rejected.';
comment on constraint event_type_registry_type_unique on public.event_type_registry is
    'A type is registered once in its domain.';

create table public.event_outbox (
    id                      uuid         not null default gen_random_uuid(),
    event_domain            text         not null default 'iu',
    event_type              text         not null,
    event_stream            text         not null default 'event',
    delivery_lane           text         not null default 'immediate',
    event_severity          text         not null default 'info',
    event_subject_table     text,
    event_subject_ref       text,
    canonical_address       text,
    actor_ref               text,
    source_system           text,
    correlation_id          text,
    payload_classification  text         not null default 'unclassified',
    safe_payload            jsonb        not null default '{}',
    occurred_at             timestamptz  not null default now(),
    created_at              timestamptz  not null default now(),

    constraint event_outbox_pkey primary key (id),
    constraint event_outbox_payload_object_chk check (jsonb_typeof(safe_payload) = 'object')
);

comment on table public.event_outbox is
    'Append-only log of events, written in the transaction that changed the data. It is a log and not a queue: it '
    'carries no delivery state.';
comment on column public.event_outbox.id is 'Identity of the event; also its trace id if the producer gave none.';
comment on column public.event_outbox.event_domain is 'Domain of the event. A worker reads one domain.';
comment on column public.event_outbox.event_type is 'Type of the event, registered in event_type_registry.';
comment on column public.event_outbox.event_stream is 'Stream of the event, fixed by the registry.';
comment on column public.event_outbox.delivery_lane is 'Urgency of the event, fixed by the registry.';
comment on column public.event_outbox.event_severity is 'Severity of the event: info, warning, error, ...';
comment on column public.event_outbox.event_subject_table is
    'Type of the subject, for example the qualified name of its table. Null: not given.';
comment on column public.event_outbox.event_subject_ref is
    'Id of the subject, as text. Ordered routes keep the order of a subject. Null: not given.';
comment on column public.event_outbox.canonical_address is 'Human-readable address of the subject. Null: not given.';
comment on column public.event_outbox.actor_ref is 'The person or process that caused the event. Null: not given.';
comment on column public.event_outbox.source_system is 'The application that wrote the event. Null: not given.';
comment on column public.event_outbox.correlation_id is
    'Id of the request or process to which the event belongs. Null: not given.';
comment on column public.event_outbox.payload_classification is
    'Classification of the payload: any text of the application.';
comment on column public.event_outbox.safe_payload is
    'The payload: a JSON object. The key iu_listen.forbidden_payload_keys of dot_config can forbid keys.';
comment on column public.event_outbox.occurred_at is 'Time of the event as stated by its emitter.';
comment on column public.event_outbox.created_at is
    'Start of the transaction that wrote the event. It is not the order of commits.';
comment on constraint event_outbox_pkey on public.event_outbox is 'Identity of the event.';
comment on constraint event_outbox_payload_object_chk on public.event_outbox is 'A payload is a JSON object.';

create function public.fn_event_type_validate()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_type      public.event_type_registry;
    v_forbidden text;
begin
    select r.* into v_type
      from public.event_type_registry r
     where r.event_domain = new.event_domain and r.event_type = new.event_type;
    if not found or not v_type.active then
        raise exception 'event type % is not registered and active', new.event_type
            using errcode = 'check_violation',
                  hint = format('Register it: iu-listen event-type add %s', new.event_type);
    end if;
    if new.event_stream is distinct from v_type.event_stream
       or new.delivery_lane is distinct from v_type.delivery_lane then
        raise exception 'event type % belongs on stream % and lane %, not on % and %',
            new.event_type, v_type.event_stream, v_type.delivery_lane, new.event_stream, new.delivery_lane
            using errcode = 'check_violation';
    end if;
    select d.value into v_forbidden from public.dot_config d where d.key = 'iu_listen.forbidden_payload_keys';
    if v_forbidden is not null and new.safe_payload ?| regexp_split_to_array(trim(v_forbidden), '\s*,\s*') then
        raise exception 'the payload of the event has a key that is forbidden here'
            using errcode = 'check_violation',
                  hint = 'The key iu_listen.forbidden_payload_keys of dot_config has the list: ' || v_forbidden;
    end if;
    return new;
end
$$;
comment on function public.fn_event_type_validate() is
    'Rejects an event of a type that is not registered and active, with another stream or lane than that of its type, or '
    'with a forbidden key in its payload.';

create trigger trg_event_outbox_type_validate
    before insert on public.event_outbox
    for each row execute function public.fn_event_type_validate();
comment on trigger trg_event_outbox_type_validate on public.event_outbox is
    'Only events of registered types enter the outbox.';
