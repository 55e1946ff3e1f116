-- Drops the tables of deliveries. The safety check forbids live routes again, and only the seam (009) is left.
--
-- loses: the record of the routes that went live or back to dry run, the delivery policies, and the paused routes
-- refuses: while a route is live, or while deliveries are pending
-- locks: iu_outbound_route and dot_config exclusively, briefly, to create a trigger and a check

do $$
declare
    v_live text;
begin
    select r.route_code into v_live from public.iu_outbound_route r where r.enabled and not r.dry_run limit 1;
    if found then
        raise exception 'route % is live', v_live using errcode = 'object_not_in_prerequisite_state',
            hint = 'Turn it back to dry run first: iu-listen route dry ' || v_live;
    end if;
    if to_regclass('public.iu_route_delivery') is not null and exists (select from public.iu_route_delivery) then
        raise exception 'deliveries are pending' using errcode = 'object_not_in_prerequisite_state',
            hint = 'List them: iu-listen delivery list. Wait for their delivery, or end them: iu-listen delivery cancel.';
    end if;
end
$$;

-- "if exists": a package with missing objects must be removable as well.
drop trigger if exists zz_iu_outbound_route_guard on public.iu_outbound_route;
drop trigger if exists zz_dot_config_live_routes on public.dot_config;
alter table public.iu_outbound_route drop constraint if exists iu_outbound_route_safe_chk;
alter table public.iu_outbound_route
    add constraint iu_outbound_route_safe_chk check (enabled = false or dry_run = true);
comment on constraint iu_outbound_route_safe_chk on public.iu_outbound_route is
    'An enabled route must be a dry run, so no route can deliver.';

drop type if exists public.iu_deliverable;
drop type if exists public.iu_delivery_failure;
drop table if exists public.iu_delivery_breaker;
drop table if exists public.iu_delivery_lease;
drop table if exists public.iu_delivery_unusable;
drop table if exists public.iu_delivery_change;
drop table if exists public.iu_route_delivery;
alter table public.iu_outbound_route drop column if exists delivery_policy;
delete from public.dot_config d
 where d.key in ('iu_core.delivery_enabled', 'iu_core.delivery_live_routes', 'iu_core.delivery_sql_functions',
                 'iu_core.delivery_schemes');
