-- The number of the probe's attempts, and the number of those with the expected values.
--
-- $1 uuid[]  events      $2 text  status       $3 text  failure code, or null

select count(*) as total,
       count(*) filter (where a.route_kind = 'outbound' and a.status = $2
                          and a.route_code = 'iu.version_applied.workflow'
                          and a.failure_code is not distinct from $3) as fitting
  from public.iu_route_attempt a
 where a.event_ref = any ($1)
