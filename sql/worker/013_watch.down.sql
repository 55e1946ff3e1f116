-- Takes away what watches need to know.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that anybody else uses

-- "if exists": a package of which something is missing must be able to be taken back.
drop view if exists public.v_iu_culprit;
drop view if exists public.v_iu_worker_health;

drop function if exists public.fn_iu_lease_holders(integer, text);
-- Its argument is a row of a table that may be missing too, and then the function is gone with it.
do $$
begin
    if to_regclass('public.iu_route_worker_cursor') is not null then
        drop function if exists public.fn_iu_outbox_consumed(public.iu_route_worker_cursor, xid8, bigint, uuid);
    end if;
end
$$;
