-- Takes the repair of a foreign history away.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that anybody else uses

-- "if exists": a package of which something is missing must be able to be taken back. The argument of one is a row of a
-- table that may be missing too, and then the function is gone with it.
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
