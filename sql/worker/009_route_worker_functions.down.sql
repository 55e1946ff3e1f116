-- Drops the worker's functions and views.
--
-- loses: nothing that is stored
-- refuses: while the worker gate is open
-- locks: nothing that other sessions use

do $$
begin
    if exists (select from public.dot_config d where d.key = 'iu_core.route_worker_enabled' and d.value = 'true') then
        raise exception 'the worker gate is open' using errcode = 'object_not_in_prerequisite_state',
            hint = 'Close it first: iu-listen gate close worker';
    end if;
end
$$;

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_route_worker_health(text);
drop view if exists public.v_iu_route_dead_letter_open;
drop view if exists public.v_iu_event_backlog;
drop view if exists public.v_iu_route_attempt_summary;
drop function if exists public.fn_iu_route_dead_letter_replay(uuid, text);
drop function if exists public.fn_iu_route_worker_run(text, integer);
drop function if exists public.fn_iu_route_deliver(text, uuid, jsonb);
drop function if exists public.fn_iu_route_worker_enabled();
