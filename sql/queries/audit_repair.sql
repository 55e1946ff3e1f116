-- Put the next few incomplete events before the cursor again; accept those that no decision of today could complete.
--
-- $1 text  worker
-- $2 int   how many at most

select public.fn_iu_audit_repair($1, $2)::text
