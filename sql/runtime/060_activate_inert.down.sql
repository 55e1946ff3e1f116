-- Drops the worker's registration and its gate.
--
-- loses: the position of the worker iu_outbound_default: if it is activated again, it reads all events from the start
-- refuses: while the worker gate is open, a dead letter is open, or other workers are registered
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
        if exists (select from public.iu_route_worker_cursor w where w.worker_name <> 'iu_outbound_default') then
            raise exception 'other workers are registered' using errcode = 'object_not_in_prerequisite_state',
                hint = 'Remove them first: iu-listen cursor show';
        end if;
        delete from public.iu_route_worker_cursor where worker_name = 'iu_outbound_default';
    end if;
end
$$;

delete from public.dot_config where key = 'iu_core.route_worker_enabled';
