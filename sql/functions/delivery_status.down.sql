-- Drops the views of deliveries and the check of their progress.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_delivery_progress_missing(text);
drop view if exists public.v_iu_delivery_parked;
drop view if exists public.v_iu_delivery;
