-- Drops the bell and the heartbeat. Consumers fall back to polling.
--
-- loses: the list of running consumers, until they are started again with 010
-- refuses: while the worker gate is open
-- locks: ACCESS EXCLUSIVE on event_outbox and dot_config, for the catalogue change only

do $$
begin
    if exists (select from public.dot_config d where d.key = 'iu_core.route_worker_enabled' and d.value = 'true') then
        raise exception 'the worker gate is open' using errcode = 'object_not_in_prerequisite_state',
            hint = 'Close it first: iu-listen gate close worker';
    end if;
end
$$;

-- "if exists": a package with missing objects must be removable as well.
drop table if exists public.iu_consumer_heartbeat;
drop trigger if exists zz_dot_config_bell on public.dot_config;
drop trigger if exists zz_event_outbox_bell on public.event_outbox;
do $$
begin
    if to_regclass('public.iu_route_worker_cursor') is not null then
        revoke select (event_domain) on public.iu_route_worker_cursor from public;
    end if;
end
$$;
