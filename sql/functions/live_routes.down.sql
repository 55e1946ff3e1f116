-- Drops the functions that make routes live.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_route_live(text, boolean, text, text);
drop function if exists public.fn_iu_delivery_problems(public.iu_outbound_route);
drop function if exists public.fn_iu_delivery_unusable(text, uuid, text[], text[], text[]);
