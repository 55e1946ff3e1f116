-- Drops the functions of delivery policies.
--
-- loses: nothing
-- refuses: never
-- locks: nothing that other sessions use

-- "if exists": a package with missing objects must be removable as well.
drop function if exists public.fn_iu_delivery_options_check(text, text, jsonb);
drop function if exists public.fn_iu_delivery_options(text);
drop function if exists public.fn_iu_delivery_scheme(text);
drop function if exists public.fn_iu_delivery_policy_check(jsonb);
drop function if exists public.fn_iu_delivery_backoff(jsonb, integer);
drop function if exists public.fn_iu_delivery_policy_of(text);
drop function if exists public.fn_iu_delivery_policy(jsonb);
