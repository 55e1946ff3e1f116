-- The guards of live routes, called by the triggers of 012: a route can deliver only while it is on the list of live
-- routes.
--
-- kind: repeatable
-- needs: functions/delivery_policy, functions/delivery_switches
-- calls: 012
-- locks: nothing that other sessions use

-- A route may be enabled and not a dry run only while it is on the list. The list is locked in share mode until the
-- transaction ends: a transaction that removes the route meanwhile waits, then finds it live and turns it back to dry
-- run.
create or replace function public.fn_iu_outbound_route_guard()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_was boolean := tg_op = 'UPDATE' and old.enabled and not old.dry_run and old.route_code = new.route_code;
    v_is  constant boolean := new.enabled and not new.dry_run;
begin
    perform public.fn_iu_delivery_policy_check(new.delivery_policy);
    -- Checked only when these columns are written: it must be possible to stop a route even if its options are wrong.
    if tg_op = 'INSERT' or (old.target_kind, old.target_ref, old.delivery_policy)
                           is distinct from (new.target_kind, new.target_ref, new.delivery_policy) then
        perform public.fn_iu_delivery_options_check(new.target_kind::text, new.target_ref::text,
                                                    new.delivery_policy -> 'target');
    end if;
    if v_is then
        perform from public.dot_config d where d.key = 'iu_core.delivery_live_routes' for share;
        if new.route_code = any (public.fn_iu_delivery_list('iu_core.delivery_live_routes')) is not true then
            raise exception 'route % may not deliver: it is not on the list of live routes', new.route_code
                using errcode = 'check_violation',
                      hint = 'Make the route live: iu-listen route live ' || new.route_code;
        end if;
    end if;
    if v_is is distinct from v_was then
        begin
            insert into public.iu_delivery_change (route_code, live, actor, why)
            values (new.route_code, v_is, coalesce(nullif(current_setting('iu.actor', true), ''), session_user),
                    nullif(current_setting('iu.why', true), ''));
        exception when insufficient_privilege then
            -- A missing right to write the record must not prevent a role from stopping a route.
            if v_is then
                raise;
            end if;
            raise warning 'route % is a dry run again, and % may not write so into iu_delivery_change',
                          new.route_code, current_user;
        end;
    end if;
    return new;
end
$$;
comment on function public.fn_iu_outbound_route_guard() is
    'Allows a route to be enabled and not a dry run only while it is on the list of live routes; records each change '
    'of that state.';

create or replace function public.fn_iu_delivery_list_guard()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    update public.iu_outbound_route r
       set dry_run = true
     where r.enabled and not r.dry_run
       and r.route_code = any (public.fn_iu_delivery_list('iu_core.delivery_live_routes')) is not true;
    return null;
exception when insufficient_privilege then
    -- The role may change settings but not routes. A route that is not on the list does not deliver in any case.
    return null;
end
$$;
comment on function public.fn_iu_delivery_list_guard() is
    'Turns routes that are not on the list of live routes back to dry run.';
