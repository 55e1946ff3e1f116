-- Drops the reanchor, the repair of a foreign history.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well. The argument of one function is a row of
-- a table that may be missing; then the function is missing as well.
drop function if exists public.fn_iu_outbox_reanchor(timestamptz, boolean, boolean);
drop function if exists public.fn_iu_outbox_judged(text[], xid8, pg_snapshot, timestamptz, xid8, bigint);
do $$
begin
    if to_regclass('public.iu_route_worker_cursor') is not null then
        drop function if exists public.fn_iu_outbox_verdict(
            public.iu_route_worker_cursor, boolean, xid8, xid8, bigint, uuid, xid);
    end if;
end
$$;
drop function if exists public.fn_iu_outbox_full_xid(xid, xid8);
