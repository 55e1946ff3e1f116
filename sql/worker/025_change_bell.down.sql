-- Consumers read the routes and the switches every second again.
--
-- loses: nothing
-- refuses: never
-- locks: ACCESS EXCLUSIVE on iu_outbound_route and dot_config, briefly

-- "if exists": a package with missing objects must be removable as well.
drop trigger if exists zz_iu_outbound_route_bell on public.iu_outbound_route;
drop trigger if exists zz_dot_config_delivery_bell on public.dot_config;
