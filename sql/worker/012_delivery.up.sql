-- Delivery: four locks, the guard that takes the place of the safety check, and targets that are SQL functions.
--
-- needs: 008, 009
-- locks: iu_outbound_route against everybody, dot_config against writers, for the moment that a trigger and a check take

-- Locks --------------------------------------------------------------------------------------------------
--
-- Nothing leaves unless all four are open: the master gate, the worker gate, the delivery gate, and the list of the
-- routes that may deliver. Missing, empty or malformed is closed. They are asked event by event, in the transaction that
-- delivers: a lock that somebody closes during a burst stops the event after the one that is being delivered.

insert into public.dot_config (key, value, description) values
    ('iu_core.delivery_enabled', 'false',
     'Delivery gate: while it is not ''true'' nothing is delivered, whatever a route says.'),
    ('iu_core.delivery_live_routes', '',
     'The routes that may deliver: codes, separated by commas. Taking one off turns it back to dry run.'),
    ('iu_core.delivery_sql_functions', '',
     'The functions that routes may call: schema.name, separated by commas.');

create function public.fn_iu_delivery_enabled()
returns boolean
language sql
stable
set search_path = ''
as $$
    select coalesce((select d.value = 'true' from public.dot_config d where d.key = 'iu_core.delivery_enabled'), false)
$$;
comment on function public.fn_iu_delivery_enabled() is
    'The delivery gate: true only while iu_core.delivery_enabled is exactly ''true''.';

-- A list with one odd entry is no list: whoever mistyped it meant something else, and nobody knows what.
create function public.fn_iu_delivery_list(p_key text)
returns text[]
language sql
stable
set search_path = ''
as $$
    select coalesce((select regexp_split_to_array(btrim(d.value), '\s*,\s*')
                       from public.dot_config d
                      where d.key = p_key and d.value ~ '^\s*[\w.:-]+(\s*,\s*[\w.:-]+)*\s*$'), '{}')
$$;
comment on function public.fn_iu_delivery_list(text) is
    'A list of names in dot_config. Missing, empty or malformed: no name at all.';

create function public.fn_iu_delivery_lock(p_route_code text)
returns text
language sql
stable
set search_path = ''
as $$
    select case when not public.fn_iu_core_routes_enabled() then 'master_gate_closed'
                when not public.fn_iu_route_worker_enabled() then 'worker_gate_closed'
                when not public.fn_iu_delivery_enabled() then 'delivery_gate_closed'
                when p_route_code = any (public.fn_iu_delivery_list('iu_core.delivery_live_routes')) is not true
                then 'route_not_listed' end
$$;
comment on function public.fn_iu_delivery_lock(text) is
    'Which lock keeps a route from delivering, the first one of the four; null: none does.';

-- Guard --------------------------------------------------------------------------------------------------

-- Who changed what may deliver, and why. Written by the guards, so that no way leads past it.
create table public.iu_delivery_change (
    id          bigint       generated always as identity,
    route_code  text         not null,
    live        boolean      not null,
    actor       text         not null default session_user,
    why         text,
    created_at  timestamptz  not null default clock_timestamp(),

    constraint iu_delivery_change_pkey primary key (id)
);
comment on table public.iu_delivery_change is 'Every time that a route went live or back to dry run. Append-only.';
comment on column public.iu_delivery_change.id is 'Order of writing.';
comment on column public.iu_delivery_change.route_code is 'The route.';
comment on column public.iu_delivery_change.live is 'True: it may deliver from then on. False: no longer.';
comment on column public.iu_delivery_change.actor is 'Who did it: iu.actor of his session, else his role.';
comment on column public.iu_delivery_change.why is 'Why, in his own words: iu.why of his session.';
comment on column public.iu_delivery_change.created_at is 'When.';
comment on constraint iu_delivery_change_pkey on public.iu_delivery_change is 'Order of writing.';

-- A route may be enabled and no dry run only while it is on the list. The list stays as it was read until the transaction
-- ends: whoever takes the route off it meanwhile waits, and then finds it live, and turns it back.
create function public.fn_iu_outbound_route_guard()
returns trigger
language plpgsql
set search_path = ''
as $$
declare
    v_was boolean := tg_op = 'UPDATE' and old.enabled and not old.dry_run and old.route_code = new.route_code;
    v_is  constant boolean := new.enabled and not new.dry_run;
begin
    if v_is then
        perform from public.dot_config d where d.key = 'iu_core.delivery_live_routes' for share;
        if new.route_code = any (public.fn_iu_delivery_list('iu_core.delivery_live_routes')) is not true then
            raise exception 'route % may not deliver: it is not on the list of live routes', new.route_code
                using errcode = 'check_violation', hint = 'iu-listen route live ' || new.route_code;
        end if;
    end if;
    if v_is is distinct from v_was then
        begin
            insert into public.iu_delivery_change (route_code, live, actor, why)
            values (new.route_code, v_is, coalesce(nullif(current_setting('iu.actor', true), ''), session_user),
                    nullif(current_setting('iu.why', true), ''));
        exception when insufficient_privilege then
            -- Whoever may stop a route must not be kept from it by a note.
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
    'Lets a route be enabled and no dry run only while it is on the list of live routes; writes who changed that.';

-- After others of its kind: what they make of a row is what counts.
create trigger zz_iu_outbound_route_guard
    before insert or update on public.iu_outbound_route
    for each row
    execute function public.fn_iu_outbound_route_guard();
comment on trigger zz_iu_outbound_route_guard on public.iu_outbound_route is
    'No route delivers that is not on the list.';
alter table public.iu_outbound_route enable always trigger zz_iu_outbound_route_guard;
alter table public.iu_outbound_route drop constraint iu_outbound_route_safe_chk;

create function public.fn_iu_delivery_list_guard()
returns trigger
language plpgsql
set search_path = ''
as $$
begin
    update public.iu_outbound_route r
       set dry_run = true
     where r.enabled and not r.dry_run
       and r.route_code = any (public.fn_iu_delivery_list('iu_core.delivery_live_routes')) is not true;
    return null;
exception when insufficient_privilege then
    -- Somebody who may change settings and no routes. What is not on the list does not deliver all the same.
    return null;
end
$$;
comment on function public.fn_iu_delivery_list_guard() is
    'Turns routes that are not on the list of live routes back to dry run.';

create trigger zz_dot_config_live_routes
    after insert or update or delete or truncate on public.dot_config
    for each statement
    execute function public.fn_iu_delivery_list_guard();
comment on trigger zz_dot_config_live_routes on public.dot_config is
    'A route that is taken off the list is a dry run again, in the same transaction.';
alter table public.dot_config enable always trigger zz_dot_config_live_routes;

-- Delivery -----------------------------------------------------------------------------------------------

-- A target is a function of the database: allowed by name, of one signature, run with the rights of the consumer. It runs
-- in the transaction of the batch, under a savepoint of 009: what it writes and that it was called are one. Its
-- deferred constraints are looked at before the next event, because at the commit they would fail the whole batch.
create function public.fn_iu_route_dispatch(p_route_code text, p_event_id uuid, p_event jsonb)
returns text
language plpgsql
set search_path = ''
as $$
declare
    r        public.iu_outbound_route;
    v_lock   text;
    v_target regprocedure;
begin
    select x.* into r from public.iu_outbound_route x where x.route_code = p_route_code;
    -- A batch knows its routes from its beginning; who turned one back since then wants no more of it.
    if r.enabled is not true then
        return 'route_disabled';
    elsif r.dry_run then
        return 'dry_run';
    end if;
    v_lock := public.fn_iu_delivery_lock(p_route_code);
    if v_lock is not null then
        raise exception '%: route % may not deliver event %', v_lock, p_route_code, p_event_id
            using errcode = 'feature_not_supported', hint = 'iu-listen route live ' || p_route_code;
    end if;
    if r.target_kind <> 'sql_function' then
        perform public.fn_iu_route_deliver(p_route_code, p_event_id, p_event);
        return 'delivered';
    end if;
    v_target := public.fn_iu_delivery_function(r.target_ref);
    set constraints all deferred;
    execute format('select %s($1, $2)', v_target::regproc)
      using 'outbound:' || p_route_code || ':' || p_event_id, p_event;
    set constraints all immediate;
    return 'delivered';
end
$$;
comment on function public.fn_iu_route_dispatch(text, uuid, jsonb) is
    'Delivers an event by a route whose locks are all open: calls its SQL function; all else goes to the seam, which '
    'raises. Answers the decision: delivered, or dry_run or route_disabled where the route is not live by now.';

create function public.fn_iu_delivery_function(p_target_ref text)
returns regprocedure
language plpgsql
stable
set search_path = ''
as $$
declare
    v_found regprocedure;
begin
    if p_target_ref = any (public.fn_iu_delivery_list('iu_core.delivery_sql_functions')) is not true then
        raise exception 'function % is not on the list of functions that routes may call', p_target_ref
            using errcode = 'feature_not_supported', hint = 'dot_config, iu_core.delivery_sql_functions';
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
                  hint = 'No set-returning, no SECURITY DEFINER function; its name in lower case, with its schema.';
    end if;
    return v_found;
end
$$;
comment on function public.fn_iu_delivery_function(text) is
    'The function that a target_ref names, if routes may call it; else an error that says why not.';

-- Both halves of going live in one call, and back. Who and why go to iu_delivery_change.
create function public.fn_iu_route_live(p_route_code text, p_live boolean, p_why text, p_actor text default session_user)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
    r      public.iu_outbound_route;
    v_list text[];
begin
    -- The list before the route, as everybody locks them.
    perform from public.dot_config d where d.key = 'iu_core.delivery_live_routes' for update;
    if not found then
        raise exception 'iu_core.delivery_live_routes is missing from dot_config' using errcode = 'undefined_object',
            hint = 'iu-listen apply creates it.';
    end if;
    select x.* into r from public.iu_outbound_route x where x.route_code = p_route_code for update;
    if not found then
        raise exception 'there is no route %', p_route_code using errcode = 'no_data_found';
    end if;
    perform set_config('iu.actor', p_actor, true), set_config('iu.why', p_why, true);
    v_list := array_remove(public.fn_iu_delivery_list('iu_core.delivery_live_routes'), p_route_code);
    if p_live then
        if r.target_kind <> 'sql_function' then
            raise exception 'route %: nothing delivers to a % yet', p_route_code, r.target_kind
                using errcode = 'feature_not_supported';
        end if;
        perform public.fn_iu_delivery_function(r.target_ref);
        v_list := v_list || p_route_code;
    end if;
    update public.dot_config d
       set value = array_to_string(v_list, ','), updated_at = clock_timestamp()
     where d.key = 'iu_core.delivery_live_routes';
    if p_live then
        update public.iu_outbound_route x set enabled = true, dry_run = false where x.route_code = p_route_code;
    end if;
    return jsonb_build_object('route', p_route_code, 'live', p_live, 'lock', public.fn_iu_delivery_lock(p_route_code));
end
$$;
comment on function public.fn_iu_route_live(text, boolean, text, text) is
    'Lets a route deliver, or turns it back to dry run: the list and the route in one transaction, with who and why.';
