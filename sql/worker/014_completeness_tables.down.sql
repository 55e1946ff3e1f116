-- Drops the tables of the completeness check.
--
-- loses: the results of the checks, the list of incomplete events, and which of them were accepted
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop table if exists public.iu_completeness_missing;
drop table if exists public.iu_completeness_pass;
