-- Drops the completeness check.
--
-- loses: the results of the checks, the list of incomplete events, and which of them were accepted
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_completeness_repair(text, integer);
drop function if exists public.fn_iu_completeness_page(text, integer, bigint);
drop function if exists public.fn_iu_completeness_confirm(text);
drop view if exists public.v_iu_completeness;
drop view if exists public.v_iu_completeness_missing;
drop table if exists public.iu_completeness_missing;
drop table if exists public.iu_completeness_pass;
