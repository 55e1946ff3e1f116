-- Takes the audit of completeness away.
--
-- loses: the results of the audits, the list of what is missing, and what was accepted as missing
-- refuses: never
-- locks: nothing that anybody else uses

-- "if exists": a package of which something is missing must be able to be taken back.
drop function if exists public.fn_iu_audit_repair(text, integer);
drop function if exists public.fn_iu_audit_page(text, integer, bigint);
drop function if exists public.fn_iu_audit_confirm(text);
drop view if exists public.v_iu_audit;
drop view if exists public.v_iu_audit_missing;
drop table if exists public.iu_audit_missing;
drop table if exists public.iu_audit;
