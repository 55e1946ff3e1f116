-- Sets the delivery policy of a route.
--
-- $1 text  route      $2 text  the policy, as JSON

update public.iu_outbound_route r set delivery_policy = $2::jsonb where r.route_code = $1
