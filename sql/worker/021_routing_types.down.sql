-- Drops the types of the steps of a batch and of health.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop type if exists public.iu_health_facts;
drop type if exists public.iu_batch_result;
drop type if exists public.iu_batch_page;
drop type if exists public.iu_batch_range;
drop type if exists public.iu_batch_routes;
