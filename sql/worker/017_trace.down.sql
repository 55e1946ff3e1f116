-- Drops the trace export. Exported spans stay in the tracing backend.
--
-- loses: the position of each export
-- refuses: while the worker gate is open
-- locks: nothing that other sessions use

do $$
begin
    if exists (select from public.dot_config d where d.key = 'iu_core.route_worker_enabled' and d.value = 'true') then
        raise exception 'the worker gate is open' using errcode = 'object_not_in_prerequisite_state',
            hint = 'Close it first: iu-listen gate close worker';
    end if;
end
$$;

-- "if exists": a package with missing objects must be removable as well.
do $$
begin
    -- The version of 016.
    if to_regprocedure('public.fn_iu_retention_releasable(uuid)') is not null then
        create or replace function public.fn_iu_retention_releasable(p_event_ref uuid)
        returns boolean
        language sql
        stable
        set plan_cache_mode = force_generic_plan
        return not exists (select from public.iu_route_worker_cursor w
                             join public.iu_completeness_missing m
                               on m.worker_name = w.worker_name and m.event_ref = p_event_ref and m.accepted_at is null)
           and not exists (select from public.iu_route_delivery d where d.event_ref = p_event_ref);
        comment on function public.fn_iu_retention_releasable(uuid) is
            'Whether all other readers have finished with this event: the completeness check does not list it, and no '
            'delivery of it is pending.';
    end if;
    -- The version of 009; a view cannot lose columns by "create or replace".
    if to_regclass('public.v_iu_route_dead_letter_open') is not null then
        drop view public.v_iu_route_dead_letter_open;
        create view public.v_iu_route_dead_letter_open as
        select d.id, d.worker_name, d.event_ref, d.route_code, d.failure_code, d.failure_detail, d.attempt_no,
               d.replay_count, d.created_at, now() - d.created_at as age
          from public.iu_route_dead_letter d
         where d.resolved_at is null;
        comment on view public.v_iu_route_dead_letter_open is 'Dead letters that are not resolved.';
    end if;
end
$$;
drop function if exists public.fn_iu_trace_accepted(text, pg_snapshot, xid8, bigint, xid8, uuid, boolean, bigint, bigint, bigint);
drop function if exists public.fn_iu_trace_dead_letters(pg_snapshot, pg_snapshot, xid8, uuid, integer);
drop function if exists public.fn_iu_trace_attempts(pg_snapshot, pg_snapshot, xid8, bigint, integer);
drop function if exists public.fn_iu_trace_again(timestamptz);
drop function if exists public.fn_iu_trace_tick(text);
drop function if exists public.fn_iu_trace_register(text);
drop table if exists public.iu_trace_cursor;
drop view if exists public.v_iu_trace_dead_letter;
drop view if exists public.v_iu_trace_attempt;
drop function if exists public.fn_iu_trace_commit_at(xid8);
drop view if exists public.v_iu_route_attempt;
drop function if exists public.fn_iu_span_id(text, text);
drop function if exists public.fn_iu_trace_id(uuid, text);
