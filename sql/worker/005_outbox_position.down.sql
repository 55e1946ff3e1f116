-- Drops the position of events.
--
-- loses: the transaction and order of every event; no cursor can be built on the outbox again without 005
-- refuses: while the package that reads the positions is installed
-- locks: ACCESS EXCLUSIVE on event_outbox, for the catalogue change only

do $$
begin
    if pg_catalog.to_regclass('public.iu_route_worker_cursor') is not null then
        raise exception 'iu_route_worker_cursor exists: its cursor reads what 005 would drop'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Roll back 008 first.';
    end if;
end
$$;

-- "if exists": a package with missing objects must be removable as well.
drop table if exists public.iu_outbox_site;
drop table if exists public.iu_outbox_home;
drop table if exists public.iu_outbox_anchor;
drop trigger if exists zz_event_outbox_restamp on public.event_outbox;
drop trigger if exists zz_event_outbox_stamp on public.event_outbox;
alter table public.event_outbox
    drop column if exists traceparent,
    drop column if exists event_seq,
    drop column if exists xact_id;
