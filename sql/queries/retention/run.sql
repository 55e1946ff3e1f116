-- Runs one batch of retention.
--
-- $1 text  kind of rows     $2 integer  maximum number of rows     $3 text  interval instead of the policy's, or null
-- $4 text  end of the previous batch, as JSON; null: from the start

select public.fn_iu_retention_run($1, $2, $3::text::interval, $4::text::jsonb)::text
