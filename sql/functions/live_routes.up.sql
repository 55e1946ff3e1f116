-- Making a route live, and reporting routes that cannot deliver.
--
-- kind: repeatable
-- needs: 012, functions/delivery_policy, functions/delivery_switches, functions/sql_targets
-- locks: nothing that other sessions use

-- Finds reasons for which a route could never deliver, before it goes live. The plan of `route live`, the command
-- itself and this function apply the same rules. The command also checks the rules that need a process: a refused
-- address, or the value of an option.
create or replace function public.fn_iu_delivery_problems(p_route public.iu_outbound_route)
returns table (problem text, hint text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_type   public.event_type_registry;
    v_scheme text;
begin
    if p_route.route_code !~ '^[\w.:-]+$' then
        return query select 'its code has characters that the list of live routes does not allow',
                            'Use only letters, digits and the characters _ . : - in the code.';
    end if;
    select x.* into v_type
      from public.event_type_registry x
     where x.event_domain = p_route.event_domain and x.event_type = p_route.event_type;
    if not found or not v_type.active then
        return query select format('event type %s.%s is not registered and active: there can be no event for it',
                                   p_route.event_domain, p_route.event_type),
                            'Register it in event_type_registry, or set active there.';
    elsif v_type.event_stream is distinct from p_route.event_stream then
        return query select format('event type %s.%s belongs to stream %s, but the route selects stream %s: there can be '
                                   'no event for it',
                                   p_route.event_domain, p_route.event_type, v_type.event_stream, p_route.event_stream),
                            'Set event_stream of the route to that of event_type_registry.';
    end if;

    case p_route.target_kind
        when 'sql_function' then
            begin
                perform public.fn_iu_delivery_function(p_route.target_ref);
            exception when feature_not_supported then
                get stacked diagnostics problem = message_text, hint = pg_exception_hint;
                return next;
            end;
        when 'workflow' then
            if coalesce(btrim(p_route.target_ref), '') = '' then
                return query select 'its target_ref is empty', 'Set target_ref to the name of a coroutine.';
            end if;
        when 'external_endpoint' then
            v_scheme := public.fn_iu_delivery_scheme(p_route.target_ref);
            if v_scheme is null then
                return query select 'its target_ref is no address',
                                    'target_ref of an external_endpoint must be an address, for example https://example.com/hook';
            elsif public.fn_iu_delivery_options(v_scheme) is null
                  and v_scheme <> all (public.fn_iu_delivery_list('iu_core.delivery_schemes')) then
                return query select 'there is no target for the scheme ' || v_scheme,
                                    'For a target in a package of your own: dot_config, iu_core.delivery_schemes';
            end if;
            if split_part(split_part(p_route.target_ref, '://', 2), '/', 1) like '%@%' then
                return query select 'its address must not contain a user or a password: many roles can read routes',
                                    'Use the options "user": "name" and "password": "env:NAME".';
            end if;
        else
            return query select 'there is no target for routes of the kind ' || p_route.target_kind,
                                'Supported kinds: docs/how-to/delivery.md';
    end case;
    begin
        perform public.fn_iu_delivery_options_check(p_route.target_kind, p_route.target_ref, p_route.delivery_policy -> 'target');
    exception when check_violation then
        get stacked diagnostics problem = message_text, hint = pg_exception_hint;
        return next;
    end;
end
$$;
comment on function public.fn_iu_delivery_problems(public.iu_outbound_route) is
    'The reasons for which a route could never deliver, each with a remedy. No row: the database knows no reason.';

-- Both steps of going live in one call, and the way back. The actor and the reason are recorded in iu_delivery_change.
create or replace function public.fn_iu_route_live(p_route_code text, p_live boolean, p_why text, p_actor text default session_user)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
declare
    r         public.iu_outbound_route;
    v_list    text[];
    v_problem record;
begin
    -- The list is locked before the route, as everywhere.
    perform from public.dot_config d where d.key = 'iu_core.delivery_live_routes' for update;
    if not found then
        raise exception 'iu_core.delivery_live_routes is missing from dot_config' using errcode = 'undefined_object',
            hint = 'Create it: iu-listen apply';
    end if;
    select x.* into r from public.iu_outbound_route x where x.route_code = p_route_code for update;
    if not found then
        raise exception 'there is no route %', p_route_code using errcode = 'no_data_found';
    end if;
    perform set_config('iu.actor', p_actor, true), set_config('iu.why', p_why, true);
    v_list := array_remove(public.fn_iu_delivery_list('iu_core.delivery_live_routes'), p_route_code);
    if p_live then
        for v_problem in select * from public.fn_iu_delivery_problems(r) loop
            raise exception 'route %: %', p_route_code, v_problem.problem
                using errcode = 'feature_not_supported', hint = v_problem.hint;
        end loop;
        v_list := v_list || p_route_code;
    end if;
    update public.dot_config d
       set value = array_to_string(v_list, ','), updated_at = clock_timestamp()
     where d.key = 'iu_core.delivery_live_routes';
    if p_live then
        update public.iu_outbound_route x set enabled = true, dry_run = false where x.route_code = p_route_code;
    end if;
    return jsonb_build_object('route', p_route_code, 'live', p_live,
                              'closed_switch', public.fn_iu_delivery_closed_switch(p_route_code));
end
$$;
comment on function public.fn_iu_route_live(text, boolean, text, text) is
    'Makes a route live, or turns it back to dry run: changes the list and the route in one transaction, and records '
    'the actor and the reason.';

create or replace function public.fn_iu_delivery_unusable(
    p_worker_name text, p_owner uuid, p_routes text[], p_whys text[], p_hints text[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set row_security = off
as $$
begin
    -- A consumer that has lost the lease must not overwrite the findings of the new lease holder.
    if not exists (select from public.iu_delivery_lease l
                    where l.worker_name = p_worker_name and l.owner = p_owner and not l.released) then
        return;
    end if;
    delete from public.iu_delivery_unusable u where u.worker_name = p_worker_name and u.route_code <> all (p_routes);
    insert into public.iu_delivery_unusable (worker_name, route_code, consumer_id, why, hint)
    select p_worker_name, r.route_code, p_owner, r.why, r.hint
      from unnest(p_routes, p_whys, p_hints) r(route_code, why, hint)
     order by r.route_code
    on conflict (worker_name, route_code) do update
       set consumer_id = excluded.consumer_id, why = excluded.why, hint = excluded.hint,
           since = case when iu_delivery_unusable.why = excluded.why then iu_delivery_unusable.since
                        else excluded.since end;
end
$$;
comment on function public.fn_iu_delivery_unusable(text, uuid, text[], text[], text[]) is
    'Replaces the list of a worker''s routes without a usable target, if the caller has the delivery lease.';
