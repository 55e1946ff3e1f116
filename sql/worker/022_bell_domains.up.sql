-- The trigger of the bell names the domains that have a worker, so producers of other domains do not pay for it.
--
-- since: 1.1
-- needs: 008, 010, functions/wake
-- locks: ACCESS EXCLUSIVE on event_outbox, for the catalogue change only

create trigger zz_iu_route_worker_cursor_bell
    after insert or delete or update of event_domain on public.iu_route_worker_cursor
    for each statement
    execute function public.fn_iu_set_bell_domains();
comment on trigger zz_iu_route_worker_cursor_bell on public.iu_route_worker_cursor is
    'Creates the trigger of the bell again when the domains that have a worker change.';
alter table public.iu_route_worker_cursor enable always trigger zz_iu_route_worker_cursor_bell;

-- A statement that changes no row fires the trigger, too.
update public.iu_route_worker_cursor set event_domain = event_domain where false;

-- Producers no longer read the domains.
revoke select (event_domain) on public.iu_route_worker_cursor from public;
