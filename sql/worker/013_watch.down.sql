-- Drops the functions and views for monitoring.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop view if exists public.v_iu_blocker;
drop view if exists public.v_iu_worker_health;

drop function if exists public.fn_iu_lease_holders(integer, text);
-- The argument of this function is a row of a table that may be missing; then the function is missing as well.
do $$
begin
    if to_regclass('public.iu_route_worker_cursor') is not null then
        drop function if exists public.fn_iu_outbox_consumed(public.iu_route_worker_cursor, xid8, bigint, uuid);
    end if;
end
$$;
