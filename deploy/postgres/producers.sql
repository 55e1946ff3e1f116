-- The group role of applications that write events: what fn_iu_emit_event needs with the rights of its caller, and what a
-- plain INSERT into event_outbox needs. None can log in.
--
-- Run it as roles.sql: after `iu-listen apply`, as a superuser, or as the owner of these tables with CREATEROLE. Where an
-- application owns these tables, as IU Core's own does, it needs none of this.
--
--     create role shop_web login in role iu_listen_producer;        -- then \password shop_web
--
-- needs: base, worker/005
-- locks: none that readers or writers wait for

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

-- The master gate, and the registry: the emitter looks at both, and a trigger of the log at the registry.
grant select (key, value) on public.dot_config to iu_listen_producer;
grant select on public.event_type_registry to iu_listen_producer;

-- Append, and be told the id. No payload can be read back; positions are set by the stamp.
grant insert, select (id) on public.event_outbox to iu_listen_producer;

commit;
