-- The emitter with the parameters of that of IU Core, for the commands emit and probe.
--
-- Part of the neutral base. Applications use the function emit() of iu_listen, or insert into event_outbox.
-- needs: 001, 002
-- locks: nothing that exists

-- Counts events that were refused because their type is not registered. A sequence, because the caller's transaction is
-- rolled back by the error, and a drawn number is not returned. The package reads the sequence if it exists.
create sequence public.iu_emit_refused_seq as bigint cache 1;
comment on sequence public.iu_emit_refused_seq is
    'Number of events that were refused because their type is not registered and active.';
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
    select r.* into v_type
      from public.event_type_registry r
     where r.event_domain = 'iu' and r.event_type = p_event_type and r.active;
    if not found then
        perform nextval('public.iu_emit_refused_seq');
        raise exception 'event type % is not registered and active', p_event_type
            using errcode = 'undefined_object', hint = format('Register it: iu-listen event-type add %s', p_event_type);
    end if;
    insert into public.event_outbox (
        event_type, event_stream, delivery_lane, event_severity, event_subject_ref, canonical_address, actor_ref,
        safe_payload)
    values (
        p_event_type, v_type.event_stream, v_type.delivery_lane, v_type.default_severity, p_subject_ref::text,
        p_canonical_address, p_actor_ref, coalesce(p_safe_payload, '{}'))
    returning id into v_id;
    return v_id;
end
$$;
comment on function public.fn_iu_emit_event(text, text, uuid, text, jsonb) is
    'Writes one event in the transaction of the caller. Raises an error if the type is not registered and active.';
