-- Dead letters by a prefix of their id, as a range of the primary key; six are enough to show that the prefix is
-- ambiguous.
--
-- $1 uuid  lowest id      $2 uuid  highest id

select d.id
  from public.iu_route_dead_letter d
 where d.id between $1 and $2
 order by d.id
 limit 6
