-- The group role of producers. It has the privileges that fn_iu_emit_event needs, because that function runs with the
-- rights of its caller, and the privileges for a plain INSERT into event_outbox. The role cannot log in.
--
-- Run it like roles.sql: after `iu-listen apply`, as a superuser, or as the owner of these tables with CREATEROLE. An
-- application that owns these tables, such as IU Core itself, does not need the role.
--
--     create role shop_web login in role iu_listen_producer;        -- then \password shop_web
--
-- needs: base, worker/005
-- locks: none for which readers or producers wait

begin;

do $$
begin
    if not exists (select from pg_catalog.pg_roles r where r.rolname = 'iu_listen_producer') then
        create role iu_listen_producer nologin;
    end if;
    execute format('grant connect on database %I to iu_listen_producer', current_database());
end
$$;
comment on role iu_listen_producer is 'Writes events; reads none of them, and changes nothing.';

revoke all on public.dot_config, public.event_type_registry, public.event_outbox from iu_listen_producer;
grant usage on schema public to iu_listen_producer;
grant execute on function
    public.fn_iu_core_routes_enabled(), public.fn_iu_emit_event(text, text, uuid, text, jsonb)
    to iu_listen_producer;

-- The emitter reads the master gate and the registry; a trigger of the outbox reads the registry.
grant select (key, value) on public.dot_config to iu_listen_producer;
grant select on public.event_type_registry to iu_listen_producer;

-- A producer may append events and read their ids. It cannot read payloads; a trigger sets the positions.
grant insert, select (id) on public.event_outbox to iu_listen_producer;

commit;
