-- The reasons, as far as the database knows them, for which a route could never deliver.
--
-- $1 text  route

select p.problem, p.hint
  from public.iu_outbound_route r
 cross join lateral public.fn_iu_delivery_problems(r) p
 where r.route_code = $1
