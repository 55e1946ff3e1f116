-- Delivery: the four switches of a route, the guard that replaces the safety check, and targets that are SQL functions.
--
-- needs: 008, 009
-- calls: 019
-- locks: iu_outbound_route exclusively, dot_config against writers, briefly, to create a trigger and a check

-- Switches -----------------------------------------------------------------------------------------------
--
-- The functions are written in plpgsql, like all functions that are called very often (009).
--
-- Nothing is delivered unless all four switches are open: the master gate, the worker gate, the delivery gate, and the
-- list of the routes that may deliver. A missing, empty or malformed setting counts as closed. The switches are asked
-- for each event, in the transaction that delivers: a switch that is closed during a burst stops the event after the
-- one that is being delivered.

insert into public.dot_config (key, value, description) values
    ('iu_core.delivery_enabled', 'false',
     'Delivery gate: while it is not ''true'' nothing is delivered, whatever a route says.'),
    ('iu_core.delivery_live_routes', '',
     'The routes that may deliver: codes, separated by commas. Taking one off turns it back to dry run.'),
    ('iu_core.delivery_sql_functions', '',
     'The functions that routes may call: schema.name, separated by commas.'),
    ('iu_core.delivery_schemes', '',
     'Schemes of addresses, beyond the built-in ones, for which a package of your own has a target: separated by commas.');

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

-- Guard --------------------------------------------------------------------------------------------------

-- The history of which routes may deliver, with the reasons. The guards write it, so no change can bypass it.
create table public.iu_delivery_change (
    id          bigint       generated always as identity,
    route_code  text         not null,
    live        boolean      not null,
    actor       text         not null default session_user,
    login       text         not null default session_user,
    why         text,
    created_at  timestamptz  not null default clock_timestamp(),

    constraint iu_delivery_change_pkey primary key (id)
);
comment on table public.iu_delivery_change is 'Each change of a route to live or back to dry run. Append-only.';
comment on column public.iu_delivery_change.id is 'Number of the change, in order of writing.';
comment on column public.iu_delivery_change.route_code is 'Code of the route.';
comment on column public.iu_delivery_change.live is
    'True: the route may deliver from this change on. False: it may no longer deliver.';
comment on column public.iu_delivery_change.actor is
    'The name given in the setting iu.actor of the session; otherwise the role of the session.';
comment on column public.iu_delivery_change.login is
    'The role of the session (session_user). No role has the right to write this column.';
comment on column public.iu_delivery_change.why is
    'The reason given in the setting iu.why of the session. Null: none was given.';
comment on column public.iu_delivery_change.created_at is 'Time of the change.';
comment on constraint iu_delivery_change_pkey on public.iu_delivery_change is 'Each change has a number.';

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
                using errcode = 'check_violation', hint = 'iu-listen route live ' || new.route_code;
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

-- The name sorts after other triggers of this kind, because their changes to the row must be checked as well.
create trigger zz_iu_outbound_route_guard
    before insert or update on public.iu_outbound_route
    for each row
    execute function public.fn_iu_outbound_route_guard();
comment on trigger zz_iu_outbound_route_guard on public.iu_outbound_route is
    'A route that is not on the list of live routes cannot deliver.';
alter table public.iu_outbound_route enable always trigger zz_iu_outbound_route_guard;
alter table public.iu_outbound_route drop constraint iu_outbound_route_safe_chk;

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

create trigger zz_dot_config_live_routes
    after insert or update or delete or truncate on public.dot_config
    for each statement
    execute function public.fn_iu_delivery_list_guard();
comment on trigger zz_dot_config_live_routes on public.dot_config is
    'Turns a route that is removed from the list back to dry run, in the same transaction.';
alter table public.dot_config enable always trigger zz_dot_config_live_routes;

-- Deliveries ---------------------------------------------------------------------------------------------
--
-- Deliveries that cannot be made in the transaction of the batch wait in this table: the batch inserts them, the holder
-- of the worker's delivery lease (019) delivers them, and the last attempt deletes the row. For the completeness check
-- (014), for retention (016, 017) and for reading an event a second time, a row proves the decision about its event, as
-- an attempt does.
--
-- The table holds two lists. Rows that were never attempted have no due_at and are read by id, from a position that
-- only goes forward, so rows deleted before it are not read again, however long vacuum is delayed. The other rows are
-- few, and are read by due_at. Replays may be many; one that waits for its subject has due_at = infinity, so it is not
-- read until it may go on.
create table public.iu_route_delivery (
    route_code      text         not null,
    id              bigint       generated always as identity,
    worker_name     text         not null,
    event_ref       uuid         not null,
    route_kind      text         not null default 'outbound',
    subject_key     bigint,
    attempt_no      integer      not null default 1,
    tries           integer      not null default 0,
    route_count     smallint,
    due_at          timestamptz,
    failed_at       timestamptz,
    failure_code    text,
    failure_detail  text,
    replayed_by     text,
    traceparent     text,
    batch_xact_id   xid8         not null default pg_current_xact_id(),
    created_at      timestamptz  not null default now(),
    credits         integer      not null default 0,
    at_fault        boolean      not null default false,
    alone           boolean      not null default false,

    constraint iu_route_delivery_pkey primary key (route_code, id)
)
with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
comment on table public.iu_route_delivery is
    'Deliveries that are pending: waiting, in flight, or due for another attempt.';
comment on column public.iu_route_delivery.route_code is 'Code of the route.';
comment on column public.iu_route_delivery.id is 'Order of routing, within a worker.';
comment on column public.iu_route_delivery.worker_name is
    'The worker that routed the event. The holder of its delivery lease delivers.';
comment on column public.iu_route_delivery.event_ref is
    'Id of the event. The event stays in the outbox until the delivery has ended.';
comment on column public.iu_route_delivery.route_kind is 'Kind of the route, as in iu_route_attempt: outbound.';
comment on column public.iu_route_delivery.subject_key is
    'Hash of the event''s subject, if the route is ordered. Null: it does not wait for other deliveries.';
comment on column public.iu_route_delivery.attempt_no is 'Number that the next attempt will have.';
comment on column public.iu_route_delivery.tries is 'Attempts spent, of those that the policy of the route allows.';
comment on column public.iu_route_delivery.route_count is
    'First attempts of which the decision about the event consists, as in iu_route_attempt. Null: it is a replay.';
comment on column public.iu_route_delivery.due_at is
    'Time before which it is not attempted. Null: at once, because it was never attempted. infinity: it is a replay, '
    'and waits for an earlier delivery of its subject.';
comment on column public.iu_route_delivery.failed_at is
    'Time from which it waits for due_at: the last attempt failed, or a replay was requested. Null: neither.';
comment on column public.iu_route_delivery.failure_code is 'Code of the last failure. Null: none has failed.';
comment on column public.iu_route_delivery.failure_detail is 'Description of the last failure. Null: none has failed.';
comment on column public.iu_route_delivery.replayed_by is
    'Name of the person or role that replays the dead letter. Null: it is not a replay.';
comment on column public.iu_route_delivery.traceparent is 'Trace context of the producer. Null: there was none.';
comment on column public.iu_route_delivery.batch_xact_id is 'Transaction that queued the delivery.';
comment on column public.iu_route_delivery.created_at is 'Time at which the delivery was queued.';
comment on column public.iu_route_delivery.credits is
    'Number of its attempts that were given back because the circuit breaker of its route opened.';
comment on column public.iu_route_delivery.at_fault is
    'True: it failed while other deliveries of its route succeeded, so its failures do not indicate a problem of the '
    'target.';
comment on column public.iu_route_delivery.alone is
    'True: the consumer ended, or lost its lease, while this delivery was in flight. It is attempted while no other '
    'delivery is in flight.';
comment on constraint iu_route_delivery_pkey on public.iu_route_delivery is 'Order of routing, by route.';

-- The route is an expression here on purpose. While the table is empty, all indexes have the same cost for the planner,
-- and an index that can be searched by the route alone would be scanned completely for each row that is settled.
create unique index iu_route_delivery_event_idx on public.iu_route_delivery (event_ref, (route_code || ''));
comment on index public.iu_route_delivery_event_idx is 'A route has at most one pending delivery of an event.';

create index iu_route_delivery_due_idx on public.iu_route_delivery (route_code, due_at) where due_at is not null;
comment on index public.iu_route_delivery_due_idx is 'Deliveries that are to be attempted again, by due time.';
create index iu_route_delivery_failed_idx on public.iu_route_delivery (route_code, failed_at) where failed_at is not null;
comment on index public.iu_route_delivery_failed_idx is
    'Deliveries by failed_at: finds times in the future after the clock was set back.';
create index iu_route_delivery_subject_idx on public.iu_route_delivery (route_code, subject_key, id)
    where subject_key is not null;
comment on index public.iu_route_delivery_subject_idx is
    'The first delivery of a subject, and the deliveries behind it.';

-- The delivery settings of a route, with its retry policy. A setting that is not given has its default; a wrong one is
-- refused when it is written.
alter table public.iu_outbound_route add column delivery_policy jsonb not null default '{}';
comment on column public.iu_outbound_route.delivery_policy is
    'Delivery settings of a live route: attempts, backoff, deadline, concurrency, order, ... (see '
    'fn_iu_delivery_policy).';

create or replace function public.fn_iu_delivery_policy(p_policy jsonb)
returns jsonb
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb '{"attempts": 5, "backoff": 1, "backoff_max": 300, "deadline": 30, "concurrency": 10, "order": "none",
                   "breaker": 5, "probe_max": 30, "dead_letters_in_a_row": 100, "target": {}}' || p_policy;
end
$$;
comment on function public.fn_iu_delivery_policy(jsonb) is 'A delivery policy with its defaults filled in.';

create or replace function public.fn_iu_delivery_policy_of(p_route_code text)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return public.fn_iu_delivery_policy(coalesce(
        (select r.delivery_policy from public.iu_outbound_route r where r.route_code = p_route_code limit 1), '{}'));
end
$$;
comment on function public.fn_iu_delivery_policy_of(text) is
    'The delivery policy of a route with its defaults filled in. If there is no such route, the defaults.';

create or replace function public.fn_iu_delivery_backoff(p_policy jsonb, p_tries integer)
returns double precision
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return least((p_policy ->> 'backoff')::double precision * 2 ^ least(p_tries, 30),
                 (p_policy ->> 'backoff_max')::double precision);
end
$$;
comment on function public.fn_iu_delivery_backoff(jsonb, integer) is
    'Seconds from a failed attempt to the next one, without jitter, by a delivery policy. p_tries: the attempts that '
    'were spent before it.';

create or replace function public.fn_iu_delivery_policy_check(p_policy jsonb)
returns void
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    -- lowest and highest allowed value
    v_ranges constant jsonb := '{"attempts": [1, 1000], "backoff": [0.001, 3600], "backoff_max": [0.001, 86400],
                                 "deadline": [0.01, 3600], "concurrency": [1, 1000], "breaker": [1, 1000],
                                 "probe_max": [0.01, 3600], "dead_letters_in_a_row": [1, 1000000]}';
    v_whole  constant text[] := array['attempts', 'concurrency', 'breaker', 'dead_letters_in_a_row'];
    p        record;
    v_number numeric;
begin
    if jsonb_typeof(p_policy) <> 'object' then
        raise exception 'a delivery policy is an object, as in {"attempts": 5}' using errcode = 'check_violation';
    end if;
    for p in select e.key as name, e.value from jsonb_each(p_policy) e loop
        if p.name = 'order' then
            if p.value not in ('"none"', '"subject"') then
                raise exception 'delivery policy: order must be none or subject, not %', p.value
                    using errcode = 'check_violation';
            end if;
        elsif p.name = 'target' then
            if jsonb_typeof(p.value) <> 'object' then
                raise exception 'delivery policy: target must be an object of options, not %', p.value
                    using errcode = 'check_violation';
            end if;
        elsif v_ranges -> p.name is null then
            raise exception 'delivery policy: there is no %', p.name
                using errcode = 'check_violation',
                      hint = 'There are: ' || (select string_agg(k, ', ' order by k)
                                                 from jsonb_object_keys(public.fn_iu_delivery_policy('{}')) k);
        else
            v_number := case when jsonb_typeof(p.value) = 'number' then p.value::numeric end;
            if (v_number between (v_ranges -> p.name ->> 0)::numeric and (v_ranges -> p.name ->> 1)::numeric) is not true
               or p.name = any (v_whole) and v_number <> trunc(v_number) then
                raise exception 'delivery policy: % must be % from % to %, not %', p.name,
                                case when p.name = any (v_whole) then 'a whole number' else 'a number' end,
                                v_ranges -> p.name ->> 0, v_ranges -> p.name ->> 1, p.value
                    using errcode = 'check_violation';
            end if;
        end if;
    end loop;
end
$$;
comment on function public.fn_iu_delivery_policy_check(jsonb) is
    'Raises check_violation if a delivery policy is invalid.';

create or replace function public.fn_iu_delivery_scheme(p_address text)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return lower(substring(p_address from '^([A-Za-z][A-Za-z0-9+.-]*)://[^/?#]'));
end
$$;
comment on function public.fn_iu_delivery_scheme(text) is
    'The scheme of an address, in lower case. Null: the text is not an address.';

-- The options are those of targets/ in the consumer; a test compares them.
create or replace function public.fn_iu_delivery_options(p_scheme text)
returns text[]
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return case
        when p_scheme in ('http', 'https')
            then array['mode', 'method', 'http2', 'secrets', 'headers', 'allow_hosts', 'ca', 'max_response', 'rejects']
        when p_scheme in ('nats', 'tls') then array['user', 'password', 'ca', 'connect_timeout', 'token']
        when p_scheme = 'kafka'
            then array['user', 'password', 'ca', 'connect_timeout', 'tls', 'mechanism', 'max_bytes']
        when p_scheme in ('redis', 'rediss', 'valkey', 'valkeys')
            then array['user', 'password', 'ca', 'connect_timeout', 'stream', 'idempotent', 'maxlen', 'max_bytes', 'connections']
        end;
end
$$;
comment on function public.fn_iu_delivery_options(text) is
    'The options of targets with this scheme. Null: no target with this scheme is built in.';

create or replace function public.fn_iu_delivery_options_check(p_target_kind text, p_target_ref text, p_options jsonb)
returns void
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_scheme constant text := public.fn_iu_delivery_scheme(p_target_ref);
    v_known  constant text[] := public.fn_iu_delivery_options(v_scheme);
    v_wrong  text;
begin
    if p_target_kind <> 'external_endpoint' or v_known is null or jsonb_typeof(p_options) is distinct from 'object' then
        return;
    end if;
    select k into v_wrong from jsonb_object_keys(p_options) k where k <> all (v_known) order by k limit 1;
    if found then
        raise exception 'delivery policy: targets of % have no option %', v_scheme, left(v_wrong, 40)
            using errcode = 'check_violation',
                  hint = 'There are: ' || (select string_agg(k, ', ' order by k) from unnest(v_known) k);
    end if;
end
$$;
comment on function public.fn_iu_delivery_options_check(text, text, jsonb) is
    'Raises check_violation if the options of a target contain one that targets of its scheme do not have.';

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

-- Delivery -----------------------------------------------------------------------------------------------

-- A target of this kind is a function of the database: allowed by name, with one signature, run with the rights of the
-- consumer. It runs in the transaction of the batch, under a savepoint of 009: its writes and the attempt that records
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
            using errcode = 'feature_not_supported', hint = 'iu-listen route live ' || p_route_code;
    end if;
    if r.target_kind <> 'sql_function' then
        perform public.fn_iu_route_deliver(p_route_code, p_event_id, p_event);
        return 'delivered';
    end if;
    v_target := public.fn_iu_delivery_function(r.target_ref);
    perform public.fn_iu_delivery_caller(v_target);
    set constraints all deferred;
    execute format('select %s($1, $2)', v_target::regproc)
      using 'outbound:' || p_route_code || ':' || p_event_id, p_event;
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
        return query select 'its code cannot stand in the list of live routes',
                            'A code is letters, digits and _ . : - only.';
    end if;
    select x.* into v_type
      from public.event_type_registry x
     where x.event_domain = p_route.event_domain and x.event_type = p_route.event_type;
    if not found or not v_type.active then
        return query select format('event type %s.%s is not registered and active: there can be no event for it',
                                   p_route.event_domain, p_route.event_type),
                            'Register it in event_type_registry, or set active there.';
    elsif v_type.event_stream is distinct from p_route.event_stream then
        return query select format('event type %s.%s belongs on stream %s, and the route waits on %s: there can be no event for it',
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
                return query select 'its target_ref is empty', 'target_ref of a workflow is the name of a coroutine.';
            end if;
        when 'external_endpoint' then
            v_scheme := public.fn_iu_delivery_scheme(p_route.target_ref);
            if v_scheme is null then
                return query select 'its target_ref is no address',
                                    'target_ref of an external_endpoint is an address, as in https://example.com/hook';
            elsif public.fn_iu_delivery_options(v_scheme) is null
                  and v_scheme <> all (public.fn_iu_delivery_list('iu_core.delivery_schemes')) then
                return query select 'nothing delivers to ' || v_scheme,
                                    'For a target in a package of your own: dot_config, iu_core.delivery_schemes';
            end if;
            if split_part(split_part(p_route.target_ref, '://', 2), '/', 1) like '%@%' then
                return query select 'its address holds a user or a password: routes are read by many',
                                    'Give them as options: "user": "name", "password": "env:NAME".';
            end if;
        else
            return query select 'nothing delivers to a ' || p_route.target_kind, 'Kinds that deliver: docs/how-to/delivery.md';
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
            hint = 'iu-listen apply creates it.';
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
    return jsonb_build_object('route', p_route_code, 'live', p_live, 'lock', public.fn_iu_delivery_closed_switch(p_route_code));
end
$$;
comment on function public.fn_iu_route_live(text, boolean, text, text) is
    'Makes a route live, or turns it back to dry run: changes the list and the route in one transaction, and records '
    'the actor and the reason.';

-- Routes without a usable target -------------------------------------------------------------------------
--
-- Only the consumer that delivers knows whether it has the coroutine, the package and the secrets of a route. It
-- records the missing ones here, and deletes the row when it has them. It writes only when something changes.
create table public.iu_delivery_unusable (
    worker_name  text         not null,
    route_code   text         not null,
    consumer_id  uuid         not null,
    why          text         not null,
    hint         text         not null default '',
    since        timestamptz  not null default clock_timestamp(),

    constraint iu_delivery_unusable_pkey primary key (worker_name, route_code)
);
comment on table public.iu_delivery_unusable is 'Routes for which the delivering consumer has no usable target.';
comment on column public.iu_delivery_unusable.worker_name is 'Name of the worker.';
comment on column public.iu_delivery_unusable.route_code is 'Code of the route.';
comment on column public.iu_delivery_unusable.consumer_id is
    'The consumer that reported it (iu_consumer_heartbeat.consumer_id).';
comment on column public.iu_delivery_unusable.why is 'The missing or wrong part of the target.';
comment on column public.iu_delivery_unusable.hint is 'The remedy. Empty: none is known.';
comment on column public.iu_delivery_unusable.since is 'Time since which the target is unusable for this reason.';
comment on constraint iu_delivery_unusable_pkey on public.iu_delivery_unusable is
    'A worker has at most one reason for each route.';

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
