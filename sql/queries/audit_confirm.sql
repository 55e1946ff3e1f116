-- Judge again what is listed as missing; what is complete is struck off.
--
-- $1 text  worker

select public.fn_iu_audit_confirm($1)::text
