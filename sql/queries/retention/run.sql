-- One batch.
--
-- $1 text  what     $2 integer  most rows     $3 text  interval that overrides the policy; null: none
-- $4 text  where the last batch ended, as JSON; null: from the start

select public.fn_iu_retention_run($1, $2, $3::text::interval, $4::text::jsonb)::text
