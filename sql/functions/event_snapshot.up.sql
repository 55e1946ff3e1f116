-- The copy of an event that a dead letter keeps, and the size of a JSON value.
--
-- kind: repeatable
-- needs: 005, functions/trace_ids
-- locks: nothing that other sessions use

-- The length of the text form of a JSON value cannot be derived from its stored size: compression stores 200 MB of one
-- character in 2.4 MB, a control character becomes six characters, and 1e131071, which is stored in 10 bytes, has 131
-- 072 digits. Converting the value to find out can take minutes, or fail. So the size is bounded first: by the binary
-- form, and by the count of its long numbers.
create or replace function public.fn_iu_json_exceeds(p_value jsonb, p_limit bigint)
returns boolean
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    -- The concatenation is a copy without compression.
    v_bytes bigint;
    v_long  bigint;
begin
    v_bytes := pg_column_size(case jsonb_typeof(p_value) when 'object' then p_value || '{}' when 'array' then p_value || '[]'
                              else jsonb_build_array(p_value) end);
    if v_bytes > 4 * p_limit then
        return true;
    end if;
    -- Numbers of more than 30 digits have 310 digits at most, unless they are beyond 1e308 or 1e-308.
    v_long := 310 * jsonb_array_length(jsonb_path_query_array(p_value,
        'strict $.** ? (@ > 1e30 || @ < -1e30 || (@ < 1e-30 && @ > 0) || (@ > -1e-30 && @ < 0))'));
    if v_long > 0 then
        v_long := v_long + 131072 * jsonb_array_length(jsonb_path_query_array(p_value,
            'strict $.** ? (@ > 1e308 || @ < -1e308)'));
        v_long := v_long + 16400 * jsonb_array_length(jsonb_path_query_array(p_value,
            'strict $.** ? ((@ < 1e-308 && @ > 0) || (@ > -1e-308 && @ < 0))'));
    end if;
    if v_long > 4 * p_limit then
        return true;
    end if;
    return 6 * v_bytes + v_long > p_limit and octet_length(p_value::text) > p_limit;
exception when others then
    -- An error for an excessive size has no SQLSTATE of its own: 54000, 53200 and XX000 all occur.
    return true;
end
$$;
comment on function public.fn_iu_json_exceeds(jsonb, bigint) is
    'Whether the text form of a JSON value has more than p_limit bytes, or its binary form more than four times as '
    'many. A value whose text may have more than about 25 times p_limit bytes is never converted.';

-- A dead letter keeps its whole event. An event can be too large for that: as jsonb a row must stay below 256 MB, as
-- text below 1 GB, and a payload of 200 MB of control characters has a text form of 1.2 GB. A snapshot that cannot be
-- stored fails the transaction that gives the event up, and one that cannot be read as text fails every reader of the
-- dead letter. Such a snapshot keeps only the identifying columns, and too_large; a replay reads the event from the
-- outbox.
create or replace function public.fn_iu_event_snapshot(p_event_id uuid)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
    v_limit constant integer := 64 * 1024 * 1024;
    v_event jsonb;
begin
    begin
        select to_jsonb(o) into v_event from public.event_outbox o where o.id = p_event_id;
        if v_event is null or not public.fn_iu_json_exceeds(v_event, v_limit) then
            return v_event;
        end if;
    exception when others then
        -- An error for an excessive size has no SQLSTATE of its own: 54000, 53200 and XX000 all occur.
        null;
    end;
    select jsonb_build_object(
               'id', o.id, 'event_domain', left(o.event_domain::text, 1000), 'event_type', left(o.event_type::text, 1000),
               'event_stream', left(o.event_stream::text, 1000),
               'event_subject_table', left(o.event_subject_table::text, 1000),
               'event_subject_ref', o.event_subject_ref,
               'canonical_address', left(o.canonical_address::text, 1000), 'actor_ref', left(o.actor_ref::text, 1000),
               'source_system', left(o.source_system::text, 1000), 'correlation_id', left(o.correlation_id::text, 1000),
               'occurred_at', o.occurred_at, 'created_at', o.created_at, 'event_seq', o.event_seq,
               'traceparent', public.fn_iu_trace_context(o.traceparent),
               'too_large', true, 'stored_bytes', pg_column_size(o.safe_payload))
      into v_event
      from public.event_outbox o
     where o.id = p_event_id;
    return v_event;
end
$$;
comment on function public.fn_iu_event_snapshot(uuid) is
    'An event for its dead letter: the whole row; or, if its text form exceeds 64 MiB, the identifying columns, with '
    'too_large and the stored size of its payload. Null: there is no such event.';
