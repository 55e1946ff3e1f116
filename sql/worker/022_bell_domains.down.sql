-- The trigger of the bell is that of 010 again: it is queued for every domain.
--
-- loses: nothing
-- refuses: never
-- locks: ACCESS EXCLUSIVE on event_outbox, for the catalogue change only

-- "if exists": a package with missing objects must be removable as well.
do $$
begin
    -- First, because a batch locks the cursor table before and after it reads the outbox.
    if to_regclass('public.event_outbox') is not null then
        lock table public.event_outbox in access exclusive mode;
    end if;
    if to_regclass('public.iu_route_worker_cursor') is not null then
        drop trigger if exists zz_iu_route_worker_cursor_bell on public.iu_route_worker_cursor;
        grant select (event_domain) on public.iu_route_worker_cursor to public;
    end if;
    if to_regclass('public.event_outbox') is not null and to_regproc('public.fn_iu_ring_bell') is not null then
        drop trigger if exists zz_event_outbox_bell on public.event_outbox;
        create constraint trigger zz_event_outbox_bell
            after insert or update of event_domain on public.event_outbox
            deferrable initially deferred
            for each row
            when (case when current_setting('iu.bell', true)
                            = pg_current_xact_id()::text || '/' || new.event_domain || '/'
                       then false
                       when starts_with(current_setting('iu.bell', true), pg_current_xact_id()::text || '/') is not true
                       then set_config('iu.bell', pg_current_xact_id()::text || '/' || new.event_domain || '/', true)
                            is not null
                       when strpos(current_setting('iu.bell', true), '/' || new.event_domain || '/') = 0
                       then set_config('iu.bell', current_setting('iu.bell', true) || new.event_domain || '/', true)
                            is not null
                       else false end)
            execute function public.fn_iu_ring_bell('event');
        alter table public.event_outbox enable always trigger zz_event_outbox_bell;
    end if;
end
$$;
