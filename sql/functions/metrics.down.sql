-- Drops the figures for metrics. A consumer with metrics reports that they are missing, and continues to work.
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

drop function if exists public.fn_iu_progress_missing(text);
drop function if exists public.fn_iu_decision_latency(text, bigint, integer);
drop function if exists public.fn_iu_metrics(text);
drop view if exists public.v_iu_trace_lag;
