-- Drops the functions that read the switches. Nothing is delivered without them.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_delivery_queued_routes(public.iu_outbound_route[]);
drop function if exists public.fn_iu_delivery_paused_by(text, boolean, boolean, timestamptz, timestamptz);
drop function if exists public.fn_iu_delivery_closed_switch(text);
drop function if exists public.fn_iu_delivery_list(text);
drop function if exists public.fn_iu_delivery_enabled();
