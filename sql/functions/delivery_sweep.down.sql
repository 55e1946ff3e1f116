-- Drops the sweep. Deliveries wait.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_delivery_seek(text, text, bigint, bigint);
drop function if exists public.fn_iu_delivery_sweep(text, text, bigint, bigint);
