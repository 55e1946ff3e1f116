-- Drops the indexes for readers of attempts and dead letters.
--
-- loses: nothing
-- refuses: while the worker gate is open
-- locks: ACCESS EXCLUSIVE on iu_route_attempt, for the catalogue change only

do $$
begin
    if exists (select from public.dot_config d where d.key = 'iu_core.route_worker_enabled' and d.value = 'true') then
        raise exception 'the worker gate is open' using errcode = 'object_not_in_prerequisite_state',
            hint = 'Close it first: iu-listen gate close worker';
    end if;
end
$$;

-- "if exists": a package with missing objects must be removable as well.
drop index if exists public.iu_route_attempt_tick_idx;
drop index if exists public.iu_route_dead_letter_tick_idx;
drop index if exists public.iu_route_dead_letter_open_idx;
drop index if exists public.iu_route_dead_letter_kind_idx;
drop index if exists public.iu_route_dead_letter_age_idx;
