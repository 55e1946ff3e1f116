-- Drops the functions of retention. Deleted rows stay deleted.
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
drop function if exists public.fn_iu_retention_plan(interval, text[]);
drop function if exists public.fn_iu_retention_run(text, integer, interval, jsonb);
drop function if exists public.fn_iu_retention_run_dead_letters(integer, timestamptz, jsonb);
drop function if exists public.fn_iu_retention_run_attempts(integer, timestamptz, jsonb);
drop function if exists public.fn_iu_retention_run_events(integer, timestamptz, jsonb);
drop function if exists public.fn_iu_retention_dead_letter_verdict(text, uuid, integer, timestamptz);
drop function if exists public.fn_iu_retention_attempt_verdict(text, uuid, text);
-- The argument of this function is a row of a table that may be missing; then the function is missing as well.
do $$
begin
    if to_regclass('public.iu_route_worker_cursor') is not null then
        drop function if exists public.fn_iu_retention_event_verdict(
            text, public.iu_route_worker_cursor[], timestamptz, timestamptz, xid8, bigint, uuid);
    end if;
end
$$;
drop function if exists public.fn_iu_retention_domains(timestamptz);
drop function if exists public.fn_iu_retention_releasable(uuid);
drop function if exists public.fn_iu_outbox_partitions();
-- Its triggers are on partitions that are about to be detached.
drop function if exists public.fn_iu_outbox_retired() cascade;
