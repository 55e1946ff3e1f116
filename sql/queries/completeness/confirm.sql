-- Confirms the events that are listed as incomplete; removes those that are complete now.
--
-- $1 text  worker

select public.fn_iu_completeness_confirm($1)::text
