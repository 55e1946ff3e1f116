-- The number of attempts of the seed's route with a status, from the view.
--
-- $1 text  status

select coalesce(sum(v.attempts), 0)::int from public.v_iu_route_attempt_summary v
 where v.route_kind = 'outbound' and v.route_code = 'iu.version_applied.workflow' and v.status = $1
