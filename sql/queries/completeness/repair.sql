-- Gives the next incomplete events a new position after the cursor; accepts those that a decision made now could not
-- complete.
--
-- $1 text  worker
-- $2 int   maximum number

select public.fn_iu_completeness_repair($1, $2)::text
