-- Drops the reanchor, the repair of a foreign history.
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
drop function if exists public.fn_iu_outbox_reanchor(timestamptz, boolean, boolean);
drop function if exists public.fn_iu_trace_reanchor(uuid, pg_snapshot, boolean, xid8, timestamptz);
drop function if exists public.fn_iu_outbox_reanchor_plan(text[], xid8, pg_snapshot, timestamptz, xid8, bigint);
drop function if exists public.fn_iu_outbox_judged(text[], xid8, pg_snapshot, timestamptz, xid8, bigint);
-- The argument of this function is a row of a table that may be missing; then the function is missing as well.
do $$
begin
    if to_regclass('public.iu_route_worker_cursor') is not null then
        drop function if exists public.fn_iu_outbox_verdict(
            public.iu_route_worker_cursor, boolean, xid8, xid8, bigint, uuid, xid);
    end if;
end
$$;
drop function if exists public.fn_iu_outbox_full_xid(xid, xid8);
