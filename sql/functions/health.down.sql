-- Drops the parts of fn_iu_route_worker_health.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_health_condition(public.iu_health_facts);
drop function if exists public.fn_iu_health_delivery(text, text);
drop function if exists public.fn_iu_health_warnings(public.iu_health_facts, public.iu_route_worker_cursor);
drop function if exists public.fn_iu_health_progress(public.iu_health_facts, text);
drop function if exists public.fn_iu_health_consumer(public.iu_health_facts);
drop function if exists public.fn_iu_health_facts(public.iu_route_worker_cursor);
