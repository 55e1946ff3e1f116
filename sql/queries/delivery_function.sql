-- The function that a target names, if routes may call it; else an error that says why not.
--
-- $1 text  target_ref

select public.fn_iu_delivery_function($1)::text
