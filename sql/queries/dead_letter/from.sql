-- The created_at of the oldest among the newest dead letters; null: there are no older ones.
--
-- $1 uuid    dead letter: of those that are older, or null      $2 bigint  number of the newest dead letters

select d.created_at
  from public.iu_route_dead_letter d
 where $1::uuid is null or (d.created_at, d.id) < (select b.created_at, b.id from public.iu_route_dead_letter b
                                                    where b.id = $1)
 order by d.created_at desc, d.id desc
offset $2::bigint
 limit 1
