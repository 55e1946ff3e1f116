-- Drops the steps of a batch.
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
drop function if exists public.fn_iu_batch_finish(
    public.iu_route_worker_cursor, public.iu_batch_result, integer, boolean, boolean);
drop function if exists public.fn_iu_batch_advance(public.iu_route_worker_cursor, public.iu_batch_page, xid8);
drop function if exists public.fn_iu_batch_dead_letters(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, public.iu_batch_result, boolean);
drop function if exists public.fn_iu_batch_give_up(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, public.iu_batch_result);
drop function if exists public.fn_iu_batch_call(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, public.iu_batch_result, boolean);
drop function if exists public.fn_iu_batch_enqueue(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, public.iu_batch_result);
drop function if exists public.fn_iu_batch_decide(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, public.iu_batch_result);
drop function if exists public.fn_iu_batch_attempts(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, integer, integer);
drop function if exists public.fn_iu_batch_shorten(
    public.iu_route_worker_cursor, public.iu_batch_page, public.iu_batch_routes, boolean, integer);
drop function if exists public.fn_iu_batch_page(
    public.iu_route_worker_cursor, public.iu_batch_range, public.iu_batch_routes, bigint, integer);
drop function if exists public.fn_iu_batch_own_events(public.iu_route_worker_cursor, xid8);
drop function if exists public.fn_iu_batch_tick(public.iu_route_worker_cursor);
drop function if exists public.fn_iu_batch_routes(public.iu_route_worker_cursor);
drop function if exists public.fn_iu_batch_idle(public.iu_route_worker_cursor);
drop function if exists public.fn_iu_decision_status(text);
drop function if exists public.fn_iu_error_of_system(text);
drop function if exists public.fn_iu_error_of_event(text);
