-- Drops the position of a confirmation of the completeness check, and the attempts that it has found.
--
-- loses: the position; the next pass of the completeness check confirms from the beginning
-- refuses: never
-- locks: ACCESS EXCLUSIVE on the two tables of the completeness check, for the catalogue change only

-- "if exists": a package with missing objects must be removable as well.
alter table if exists public.iu_completeness_pass
    drop column if exists scan_id,
    drop column if exists scan_until,
    drop column if exists scan_ref,
    drop column if exists scan_missing;
alter table if exists public.iu_completeness_missing drop column if exists seen;
