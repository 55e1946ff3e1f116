-- Targets that are SQL functions: they run in the transaction of the batch.
--
-- kind: repeatable
-- needs: functions/delivery_switches, functions/idempotency_key
-- calls: 009
-- locks: nothing that other sessions use

-- A target of this kind is a function of the database: allowed by name, with one signature, run with the rights of the
-- consumer. It runs in the transaction of the batch, under a savepoint of fn_iu_batch_call: its writes and the attempt that records
-- the call are committed together. Its deferred constraints are checked before the next event, because at the commit
-- they would make the whole batch fail.
create or replace function public.fn_iu_route_dispatch(p_route_code text, p_event_id uuid, p_event jsonb)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
-- The target is code of the application: row policies filter for it as they do elsewhere.
set row_security = on
as $$
declare
    r        public.iu_outbound_route;
    v_lock   text;
    v_target regprocedure;
begin
    select x.* into r from public.iu_outbound_route x where x.route_code = p_route_code;
    -- The batch read its routes when it began. A route that was disabled or turned back since then must not deliver.
    if r.enabled is not true then
        return 'route_disabled';
    elsif r.dry_run then
        return 'dry_run';
    end if;
    v_lock := public.fn_iu_delivery_closed_switch(p_route_code);
    if v_lock is not null then
        raise exception '%: route % may not deliver event %', v_lock, p_route_code, p_event_id
            using errcode = 'feature_not_supported',
                  hint = 'Make the route live: iu-listen route live ' || p_route_code;
    end if;
    if r.target_kind <> 'sql_function' then
        perform public.fn_iu_route_deliver(p_route_code, p_event_id, p_event);
        return 'delivered';
    end if;
    v_target := public.fn_iu_delivery_function(r.target_ref);
    perform public.fn_iu_delivery_caller(v_target);
    set constraints all deferred;
    execute format('select %s($1, $2)', v_target::regproc)
      using public.fn_iu_idempotency_key(p_route_code, p_event_id), p_event;
    set constraints all immediate;
    return 'delivered';
end
$$;
comment on function public.fn_iu_route_dispatch(text, uuid, jsonb) is
    'Delivers an event by a route with all switches open: calls its SQL function; every other target kind goes '
    'to fn_iu_route_deliver, which raises. Answers the decision: delivered; or dry_run or route_disabled if the route '
    'is no longer live.';

create or replace function public.fn_iu_delivery_function(p_target_ref text)
returns regprocedure
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_found regprocedure;
begin
    if p_target_ref = any (public.fn_iu_delivery_list('iu_core.delivery_sql_functions')) is not true then
        raise exception 'function % is not on the list of functions that routes may call', p_target_ref
            using errcode = 'feature_not_supported',
                  hint = 'Add the function to iu_core.delivery_sql_functions in dot_config.';
    end if;
    select p.oid into v_found
      from pg_catalog.pg_proc p
      join pg_catalog.pg_namespace n on n.oid = p.pronamespace
     where n.nspname || '.' || p.proname = p_target_ref
       and pg_catalog.oidvectortypes(p.proargtypes) = 'text, jsonb'
       and p.prokind = 'f' and not p.prosecdef and not p.proretset;
    if v_found is null then
        raise exception 'there is no function %(idempotency_key text, event jsonb) that runs with the rights of its caller',
                        p_target_ref
            using errcode = 'feature_not_supported',
                  hint = 'Write its name in lower case, with its schema. It must not return a set or be SECURITY DEFINER.';
    end if;
    return v_found;
end
$$;
comment on function public.fn_iu_delivery_function(text) is
    'The function that a target_ref names, if routes may call it. Otherwise raises feature_not_supported with the '
    'reason.';

-- A function that a route calls runs with the rights of its caller, and it can undo a SET ROLE. Therefore both the role
-- with which the session began and the role that it has assumed are checked. The roles of the consumer and of the
-- operator have no rights beyond those in roles.sql. Any other role may call the function only if the owner of the
-- function already has all rights of that role, for example as that role itself or as a superuser.
create or replace function public.fn_iu_delivery_caller(p_target regprocedure)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_caller text;
    v_owner  text;
begin
    select c.rolname, p.proowner::regrole::text into v_caller, v_owner
      from pg_catalog.pg_proc p
     cross join pg_catalog.pg_roles c
     where p.oid = p_target
       and (c.rolname = session_user or c.rolname = current_user
            or c.oid = (select a.usesysid from pg_catalog.pg_stat_get_activity(pg_backend_pid()) a))
       and not pg_has_role(p.proowner, c.oid, 'USAGE')
       and (c.rolsuper
            or pg_has_role(c.oid, (select t.relowner from pg_catalog.pg_class t
                                    where t.oid = 'public.iu_outbound_route'::regclass), 'USAGE')
            or not exists (select from pg_catalog.pg_roles g
                            where g.rolname in ('iu_listen_consumer', 'iu_listen_operator')
                              and pg_has_role(c.oid, g.oid, 'USAGE')))
     order by c.rolsuper desc
     limit 1;
    if found then
        raise exception 'function % is not called as role %: it belongs to %, which would get the rights of that role',
                        p_target, v_caller, v_owner
            using errcode = 'insufficient_privilege',
                  hint = 'Run the consumer and its replays as a role of deploy/postgres/roles.sql, or let a role with '
                         'these rights own the function.';
    end if;
end
$$;
comment on function public.fn_iu_delivery_caller(regprocedure) is
    'Raises insufficient_privilege if the function of a route would run with rights that its owner does not have, '
    'unless the session has the consumer''s or the operator''s role.';
