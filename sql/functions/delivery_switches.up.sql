-- The four switches of a route, and the reason why a route is paused.
--
-- Nothing is delivered unless all four switches are open: the master gate, the worker gate, the delivery gate, and the
-- list of the routes that may deliver. A missing, empty or malformed setting counts as closed. The switches are read
-- for each event, in the transaction that delivers: a switch that is closed during a burst stops the event after the
-- one that is being delivered.
--
-- The functions are written in plpgsql, like all functions that are called very often (009).
--
-- kind: repeatable
-- needs: base (fn_iu_core_routes_enabled)
-- calls: 009
-- locks: nothing that other sessions use

create or replace function public.fn_iu_delivery_enabled()
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((select d.value = 'true' from public.dot_config d where d.key = 'iu_core.delivery_enabled'), false);
end
$$;
comment on function public.fn_iu_delivery_enabled() is
    'The delivery gate: true only while iu_core.delivery_enabled is exactly ''true''.';

-- A list with one malformed entry counts as empty, because the intended entry is unknown.
create or replace function public.fn_iu_delivery_list(p_key text)
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((select regexp_split_to_array(btrim(d.value), '\s*,\s*')
                       from public.dot_config d
                      where d.key = p_key and d.value ~ '^\s*[\w.:-]+(\s*,\s*[\w.:-]+)*\s*$'), '{}');
end
$$;
comment on function public.fn_iu_delivery_list(text) is
    'A list of names in dot_config. If it is missing, empty or malformed, it has no names.';

create or replace function public.fn_iu_delivery_closed_switch(p_route_code text)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return case when not public.fn_iu_core_routes_enabled() then 'master_gate_closed'
                when not public.fn_iu_route_worker_enabled() then 'worker_gate_closed'
                when not public.fn_iu_delivery_enabled() then 'delivery_gate_closed'
                when p_route_code = any (public.fn_iu_delivery_list('iu_core.delivery_live_routes')) is not true
                then 'route_not_listed' end;
end
$$;
comment on function public.fn_iu_delivery_closed_switch(text) is
    'The first of the four switches that keeps a route from delivering: master_gate_closed, worker_gate_closed, '
    'delivery_gate_closed or route_not_listed. Null: all are open.';

-- Answers the first reason that applies. A route paused by its breaker or its budget still gets trial deliveries. The
-- parameters are single columns of the route and of its breaker, because passing whole rows would cost more than the
-- function itself.
create or replace function public.fn_iu_delivery_paused_by(
    p_route_code text, p_enabled boolean, p_dry_run boolean, p_stopped_at timestamptz, p_opened_at timestamptz)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return case when p_enabled is not true then 'route_disabled'
                when p_dry_run then 'dry_run'
                else coalesce(public.fn_iu_delivery_closed_switch(p_route_code),
                              case when p_stopped_at is not null then 'dead_letter_budget'
                                   when p_opened_at is not null then 'breaker_open' end) end;
end
$$;
comment on function public.fn_iu_delivery_paused_by(text, boolean, boolean, timestamptz, timestamptz) is
    'The reason why a route is paused: route_disabled, dry_run, one of the reasons of fn_iu_delivery_closed_switch, '
    'dead_letter_budget, or breaker_open. Null: the route delivers.';

-- A live route that is not on the list has bypassed the guard. It is not queued; its events become dead letters with
-- that reason. The caller has already checked the master gate and the worker gate, and fn_iu_delivery_paused_by checks them
-- again.
create or replace function public.fn_iu_delivery_queued_routes(p_routes public.iu_outbound_route[])
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select coalesce(jsonb_object_agg(r.route_code, case when not public.fn_iu_delivery_enabled()
                                                                then 'delivery_gate_closed' end), '{}')
              from unnest(p_routes) r
             where r.enabled and not r.dry_run and r.target_kind in ('workflow', 'external_endpoint')
               and r.route_code = any (public.fn_iu_delivery_list('iu_core.delivery_live_routes')));
end
$$;
comment on function public.fn_iu_delivery_queued_routes(public.iu_outbound_route[]) is
    'The given routes whose events are queued for delivery, each with delivery_gate_closed if that gate holds it, '
    'otherwise null.';
