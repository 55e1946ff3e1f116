-- The lowest id among about the newest attempts (the ids have gaps); null: there are no older ones.
--
-- $1 bigint  number of the newest attempts

select n.id - $1::bigint + 1
  from (select max(a.id) as id from public.iu_route_attempt a) n
 where exists (select from public.iu_route_attempt a where a.id <= n.id - $1::bigint)
