-- Drops the functions and views of the trace export. Exported spans stay in the tracing backend.
--
-- loses: nothing
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
drop function if exists public.fn_iu_trace_accepted(text, pg_snapshot, xid8, bigint, xid8, uuid, boolean, bigint, bigint, bigint);
drop function if exists public.fn_iu_trace_dead_letters(pg_snapshot, pg_snapshot, xid8, uuid, integer);
drop function if exists public.fn_iu_trace_attempts(pg_snapshot, pg_snapshot, xid8, bigint, integer);
drop function if exists public.fn_iu_trace_again(timestamptz);
drop function if exists public.fn_iu_trace_tick(text);
drop function if exists public.fn_iu_trace_register(text);
drop view if exists public.v_iu_trace_dead_letter;
drop view if exists public.v_iu_trace_attempt;
drop function if exists public.fn_iu_trace_commit_at(xid8);
drop view if exists public.v_iu_route_attempt;
