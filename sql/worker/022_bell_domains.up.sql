-- The trigger of the bell names the domains that have a worker, so producers of other domains do not pay for it.
--
-- since: 1.1
-- needs: 008, 010, functions/wake
-- locks: ACCESS EXCLUSIVE on event_outbox, for the catalogue change only, and only if it is available within lock_timeout

-- The condition of the trigger calls the function with the rights of the producer.
grant execute on function public.fn_iu_bell_due(text) to public;

-- Without that lock the trigger of 010 stays. It does the same for every domain, and is replaced when the workers change.
-- The outbox is locked first, because a batch locks the cursor table before and after it reads the outbox: in the other
-- order, a batch and this file could wait for each other.
do $$
declare
    v_locked boolean := true;
begin
    begin
        lock table public.event_outbox in access exclusive mode;
    exception when lock_not_available then
        v_locked := false;
    end;

    create trigger zz_iu_route_worker_cursor_bell
        after insert or delete or update of event_domain on public.iu_route_worker_cursor
        for each statement
        execute function public.fn_iu_set_bell_domains();
    comment on trigger zz_iu_route_worker_cursor_bell on public.iu_route_worker_cursor is
        'Creates the trigger of the bell again when the domains that have a worker change.';
    alter table public.iu_route_worker_cursor enable always trigger zz_iu_route_worker_cursor_bell;

    -- A statement that changes no row fires the trigger, too.
    if v_locked then
        update public.iu_route_worker_cursor set event_domain = event_domain where false;
    end if;
end
$$;

-- Producers no longer read the domains.
revoke select (event_domain) on public.iu_route_worker_cursor from public;
