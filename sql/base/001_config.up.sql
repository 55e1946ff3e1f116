-- The configuration table that holds every gate, and the master gate.
--
-- Belongs to IU Core, and to the neutral base. A production database of IU Core has it already.
-- needs: nothing
-- locks: nothing that exists

create table public.dot_config (
    key          text         not null,
    value        text,
    description  text,
    updated_at   timestamptz  not null default now(),

    constraint dot_config_key_unique unique (key)
);

comment on table public.dot_config is 'Configuration by key. It holds all gates; a missing key means closed.';
comment on column public.dot_config.key is 'Dotted name of the setting.';
comment on column public.dot_config.value is 'The value as text. A gate is open only if it is exactly ''true''.';
comment on column public.dot_config.description is 'The effect of the setting, in words.';
comment on column public.dot_config.updated_at is
    'Time of the last change of the value; for a gate: since when it is open or closed.';
comment on constraint dot_config_key_unique on public.dot_config is 'A key has one value.';

insert into public.dot_config (key, value, description) values
    ('iu_core.routes_master_enabled', 'true',
     'Master gate: while it is not ''true'' no unit event is emitted and no route is worked.');

create function public.fn_iu_core_routes_enabled()
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((select d.value = 'true'
                       from public.dot_config d
                      where d.key = 'iu_core.routes_master_enabled'), false);
end
$$;
comment on function public.fn_iu_core_routes_enabled() is
    'The master gate: true only while iu_core.routes_master_enabled is exactly ''true''.';
