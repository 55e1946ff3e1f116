-- Drops the guard that replaces the safety check, inside this transaction.

drop trigger if exists zz_iu_outbound_route_guard on public.iu_outbound_route
