-- Opens both gates, for this transaction only.

insert into public.dot_config (key, value) values
    ('iu_core.routes_master_enabled', 'true'), ('iu_core.route_worker_enabled', 'true')
on conflict (key) do update set value = 'true', updated_at = now()
