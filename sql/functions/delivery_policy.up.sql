-- The delivery policy of a route: its retry policy (attempts, backoff, deadline), concurrency and order, with defaults
-- and checks, and the options of targets. functions/delivery_settle computes the time of the next attempt.
--
-- kind: repeatable
-- needs: base (iu_outbound_route)
-- locks: nothing that other sessions use

create or replace function public.fn_iu_delivery_policy(p_policy jsonb)
returns jsonb
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb '{"attempts": 5, "backoff": 1, "backoff_max": 300, "deadline": 30, "concurrency": 10, "order": "none",
                   "breaker": 5, "trial_interval_max": 30, "dead_letters_in_a_row": 100, "target": {}}' || p_policy;
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
                                 "trial_interval_max": [0.01, 3600], "dead_letters_in_a_row": [1, 1000000]}';
    v_whole  constant text[] := array['attempts', 'concurrency', 'breaker', 'dead_letters_in_a_row'];
    p        record;
    v_number numeric;
begin
    if jsonb_typeof(p_policy) <> 'object' then
        raise exception 'a delivery policy must be a JSON object, for example {"attempts": 5}'
            using errcode = 'check_violation';
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
            raise exception 'delivery policy: there is no setting %', p.name
                using errcode = 'check_violation',
                      hint = 'The settings are: ' || (select string_agg(k, ', ' order by k)
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
                  hint = 'The options are: ' || (select string_agg(k, ', ' order by k) from unnest(v_known) k);
    end if;
end
$$;
comment on function public.fn_iu_delivery_options_check(text, text, jsonb) is
    'Raises check_violation if the options of a target contain one that targets of its scheme do not have.';
