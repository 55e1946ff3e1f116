-- Drops the indexes of the cursor.
--
-- loses: nothing; the numbers of old events stay until 005 is rolled back
-- refuses: while the package that reads through them is installed
-- locks: ACCESS EXCLUSIVE on event_outbox, for the catalogue change only

do $$
begin
    if pg_catalog.to_regclass('public.iu_route_worker_cursor') is not null then
        raise exception 'iu_route_worker_cursor exists: its cursor reads through these indexes'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Roll back 008 first.';
    end if;
end
$$;

-- "if exists": a package of which something is missing must be able to be taken back.
drop index if exists public.event_outbox_order_idx;
drop index if exists public.event_outbox_tick_idx;
