-- Drops the indexes for health, for lists of failures and for the completeness check.
--
-- loses: nothing
-- refuses: never
-- locks: ACCESS EXCLUSIVE on iu_route_attempt and iu_route_dead_letter, for the catalogue change only

-- "if exists": a package with missing objects must be removable as well.
drop index if exists public.iu_route_attempt_failed_idx;
drop index if exists public.iu_route_dead_letter_worker_idx;
drop index if exists public.iu_route_dead_letter_unwritten_idx;
drop index if exists public.iu_completeness_missing_open_idx;
drop index if exists public.iu_completeness_missing_accepted_idx;
