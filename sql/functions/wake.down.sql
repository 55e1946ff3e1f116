-- Drops the bell. Its triggers must be dropped before (010, 022).
--
-- loses: nothing
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
drop function if exists public.fn_iu_ring_after_change();
drop function if exists public.fn_iu_ring_consumers();
drop function if exists public.fn_iu_ring_bell();
drop function if exists public.fn_iu_set_bell_domains();
drop function if exists public.fn_iu_bell_due(text);
