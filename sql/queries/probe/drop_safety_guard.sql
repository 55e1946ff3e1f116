-- The same for what takes the place of the safety check.

drop trigger if exists zz_iu_outbound_route_guard on public.iu_outbound_route
