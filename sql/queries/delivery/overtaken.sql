-- The given deliveries that are not the first of their subject. They were in flight in a history that this server
-- lacks.
--
-- $1 text[]    routes
-- $2 bigint[]  ids
-- $3 bigint[]  subject keys

select s.id
  from unnest($1::text[], $2::bigint[], $3::bigint[]) s(route_code, id, subject_key)
 where exists (select from public.iu_route_delivery d
                where d.route_code = s.route_code and d.subject_key = s.subject_key and d.id < s.id)
