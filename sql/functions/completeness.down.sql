-- Drops the functions and views of the completeness check.
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
drop function if exists public.fn_iu_completeness_repair(text, integer);
drop function if exists public.fn_iu_completeness_page(text, integer, bigint);
drop function if exists public.fn_iu_completeness_confirm(text);
-- The arguments of these functions are rows of a table that may be missing; then the functions are missing as well.
do $$
begin
    if to_regclass('public.iu_completeness_pass') is not null then
        drop function if exists public.fn_iu_completeness_scan(public.iu_completeness_pass, bigint);
        drop function if exists public.fn_iu_completeness_judge(public.iu_completeness_pass, bigint);
        drop function if exists public.fn_iu_completeness_walk(public.iu_completeness_pass, text, integer);
        drop function if exists public.fn_iu_completeness_begin(public.iu_completeness_pass, text);
    end if;
end
$$;
drop view if exists public.v_iu_completeness;
drop view if exists public.v_iu_completeness_missing;
