-- The given ids that are not ids of dead letters.
--
-- $1 uuid[]  ids

select w.id
  from unnest($1::uuid[]) w(id)
 where not exists (select from public.iu_route_dead_letter d where d.id = w.id)
