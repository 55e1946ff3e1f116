-- Drops the cursor and the dead letters.
--
-- loses: the position of every worker and the resolved dead letters
-- refuses: while the worker gate is open, a dead letter is open, or 060 is applied
-- locks: nothing that other sessions use

do $$
declare
    v_open bigint;
begin
    if exists (select from public.dot_config d where d.key = 'iu_core.route_worker_enabled' and d.value = 'true') then
        raise exception 'the worker gate is open' using errcode = 'object_not_in_prerequisite_state',
            hint = 'Close it first: iu-listen gate close worker';
    end if;
    if to_regclass('public.iu_route_dead_letter') is not null then
        select count(*) into v_open from public.iu_route_dead_letter d where d.resolved_at is null;
        if v_open > 0 then
            raise exception '% dead letter(s) are open', v_open using errcode = 'object_not_in_prerequisite_state',
                hint = 'Replay or resolve them first: iu-listen dead-letter list';
        end if;
    end if;
    if to_regclass('public.iu_route_worker_cursor') is not null then
        if exists (select from public.iu_route_worker_cursor) then
            raise exception 'workers are still registered' using errcode = 'object_not_in_prerequisite_state',
                hint = 'Roll back runtime/060 first.';
        end if;
    end if;
end
$$;

-- "if exists": a package with missing objects must be removable as well.
drop table if exists public.iu_route_dead_letter;
drop table if exists public.iu_route_worker_cursor;
