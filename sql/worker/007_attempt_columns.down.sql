-- Drops the columns that describe the decision behind an attempt.
--
-- loses: the number of attempts of each decision, its transactions, its trace context, and the called target
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
alter table public.iu_route_attempt
    drop column if exists route_count,
    drop column if exists xact_id,
    drop column if exists traceparent,
    drop column if exists batch_xact_id,
    drop column if exists target;
