-- Drops the guards of live routes. Their triggers must be dropped before (012).
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_delivery_list_guard();
drop function if exists public.fn_iu_outbound_route_guard();
