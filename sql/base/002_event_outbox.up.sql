-- The outbox: an append-only log shared by many domains, and the registry of the event types that may be written to it.
--
-- Belongs to IU Core; this copy is for the embedded server and the tests.
-- needs: 001
-- locks: nothing that exists

create table public.event_type_registry (
    event_domain      text     not null,
    event_type        text     not null,
    event_stream      text     not null,
    delivery_lane     text     not null,
    default_severity  text     not null default 'info',
    active            boolean  not null default true,

    constraint event_type_registry_type_unique unique (event_domain, event_type)
);

comment on table public.event_type_registry is
    'The event types that may be written to event_outbox; an unknown or inactive type is rejected.';
comment on column public.event_type_registry.event_domain is 'Domain that owns the event type: iu, system, ...';
comment on column public.event_type_registry.event_type is 'Name of the event type, in the past tense.';
comment on column public.event_type_registry.event_stream is
    'The only stream on which events of this type are written.';
comment on column public.event_type_registry.delivery_lane is 'The only lane in which events of this type are written.';
comment on column public.event_type_registry.default_severity is 'Severity of an event if its emitter gives none.';
comment on column public.event_type_registry.active is 'False: events of this type are rejected.';
comment on constraint event_type_registry_type_unique on public.event_type_registry is
    'A type is registered once in its domain.';

insert into public.event_type_registry (event_domain, event_type, event_stream, delivery_lane) values
    ('iu', 'version_applied', 'update', 'immediate'),
    ('system', 'alert', 'alert', 'immediate');

create table public.event_outbox (
    id                      uuid         not null default gen_random_uuid(),
    event_domain            text         not null,
    event_type              text         not null,
    event_stream            text         not null,
    delivery_lane           text         not null,
    event_severity          text         not null default 'info',
    event_subject_table     text,
    event_subject_ref       uuid,
    canonical_address       text,
    actor_ref               text,
    source_system           text,
    correlation_id          text,
    payload_classification  text         not null default 'safe_metadata',
    safe_payload            jsonb        not null default '{}',
    occurred_at             timestamptz  not null default now(),
    created_at              timestamptz  not null default now(),

    constraint event_outbox_pkey primary key (id),
    constraint event_outbox_stream_chk check (
        event_stream in ('comment', 'review', 'update', 'birth', 'task', 'alert', 'health')),
    constraint event_outbox_classification_chk check (
        payload_classification in ('safe_metadata', 'restricted')),
    constraint event_outbox_safe_payload_chk check (
        not safe_payload ?| array['body', 'content', 'raw', 'vector', 'embedding', 'secret', 'token', 'password'])
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
    'Table of the row that the event is about. Null: not given.';
comment on column public.event_outbox.event_subject_ref is
    'Id of the row that the event is about (its subject). Ordered routes keep the order of a subject. Null: not given.';
comment on column public.event_outbox.canonical_address is 'Human-readable address of the subject. Null: not given.';
comment on column public.event_outbox.actor_ref is 'The person or process that caused the event. Null: not given.';
comment on column public.event_outbox.source_system is 'The application that wrote the event. Null: not given.';
comment on column public.event_outbox.correlation_id is
    'Id of the request or process to which the event belongs. Null: not given.';
comment on column public.event_outbox.payload_classification is
    'Classification of the payload: safe_metadata or restricted.';
comment on column public.event_outbox.safe_payload is
    'Metadata only: keys for content, vectors and secrets are rejected.';
comment on column public.event_outbox.occurred_at is 'Time of the event as stated by its emitter.';
comment on column public.event_outbox.created_at is
    'Start of the transaction that wrote the event. It is not the order of commits.';
comment on constraint event_outbox_pkey on public.event_outbox is 'Identity of the event.';
comment on constraint event_outbox_stream_chk on public.event_outbox is 'The streams that exist.';
comment on constraint event_outbox_classification_chk on public.event_outbox is 'The classifications that exist.';
comment on constraint event_outbox_safe_payload_chk on public.event_outbox is
    'Keys for content or secrets are rejected.';

create function public.fn_event_type_validate()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_type public.event_type_registry;
begin
    select r.* into v_type
      from public.event_type_registry r
     where r.event_domain = new.event_domain and r.event_type = new.event_type;

    if not found or not v_type.active then
        raise exception 'event type %.% is not registered and active', new.event_domain, new.event_type
            using errcode = 'check_violation',
                  hint = 'Register it in event_type_registry, or set active there.';
    end if;
    if new.event_stream is distinct from v_type.event_stream
       or new.delivery_lane is distinct from v_type.delivery_lane then
        raise exception 'event type %.% belongs on stream % and lane %, not on % and %',
            new.event_domain, new.event_type, v_type.event_stream, v_type.delivery_lane,
            new.event_stream, new.delivery_lane
            using errcode = 'check_violation';
    end if;
    return new;
end
$$;
comment on function public.fn_event_type_validate() is
    'Rejects an event whose type is unknown or inactive, or whose stream or lane differs from the registry.';

create trigger trg_event_outbox_type_validate
    before insert on public.event_outbox
    for each row execute function public.fn_event_type_validate();
comment on trigger trg_event_outbox_type_validate on public.event_outbox is
    'Only events of registered types enter the outbox.';
