-- Sets a retention policy.
--
-- $1 text  kind of rows     $2 text  interval; null disables the policy and keeps its interval

update public.iu_retention_policy p
   set keep = coalesce($2::text::interval, p.keep), enabled = $2 is not null, updated_at = now()
 where p.what = $1
returning p.what, p.keep::text as keep, p.enabled, p.updated_at, p.last_run_at, p.last_gone, p.total_gone
