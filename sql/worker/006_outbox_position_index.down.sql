-- Drops the indexes of the cursor.
--
-- loses: nothing; the numbers of old events stay until 005 is rolled back
-- refuses: while the package that reads through these indexes is installed
-- locks: ACCESS EXCLUSIVE on event_outbox, for the catalogue change only

do $$
begin
    if pg_catalog.to_regclass('public.iu_route_worker_cursor') is not null then
        raise exception 'iu_route_worker_cursor exists: its cursor reads through these indexes'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Roll back 008 first.';
    end if;
end
$$;

-- "if exists": a package with missing objects must be removable as well.
drop index if exists public.event_outbox_order_idx;
drop index if exists public.event_outbox_tick_idx;

-- On a partitioned outbox, an interrupted apply leaves indexes of partitions behind that have no parent yet.
do $$
declare
    v_index regclass;
begin
    for v_index in
        select i.indexrelid
          from pg_catalog.pg_partition_tree('public.event_outbox') p
          join pg_catalog.pg_index i on i.indrelid = p.relid
          join pg_catalog.pg_class k on k.oid = i.indexrelid
         where k.relname ~ '^event_outbox_(tick|order)_idx_\d+$'
    loop
        execute format('drop index %s', v_index);
    end loop;
end
$$;
