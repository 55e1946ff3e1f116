-- Drops the delivery to SQL functions. Only the seam (009) is left.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_route_dispatch(text, uuid, jsonb);
drop function if exists public.fn_iu_delivery_caller(regprocedure);
drop function if exists public.fn_iu_delivery_function(text);
