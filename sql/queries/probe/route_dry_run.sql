-- Makes the seed's route a dry run, or not.
--
-- $1 bool  dry_run

update public.iu_outbound_route set dry_run = $1 where route_code = 'iu.version_applied.workflow'
