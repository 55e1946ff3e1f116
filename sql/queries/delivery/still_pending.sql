-- Those of these deliveries that exist: they are attempted again.
--
-- $1 text[]    routes
-- $2 bigint[]  ids

select d.id
  from unnest($1::text[], $2::bigint[]) t(route_code, id)
  join public.iu_route_delivery d on d.route_code = t.route_code and d.id = t.id
