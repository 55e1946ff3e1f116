-- The next open dead letters that these filters let through, the oldest first.
--
-- $1 text         route, or null
-- $2 text         failure code, or null
-- $3 timestamptz  created since then, or null
-- $4 uuid         event, or null
-- $5 text         subject, or null
-- $6 timestamptz  created until then
-- $7 timestamptz  after this one: when it was created, or null
-- $8 uuid         and its id
-- $9 int          how many at most

select d.id, d.created_at
  from public.fn_iu_dead_letters_open($1, $2, $3, $4, $5, $6, $7, $8, $9) o(id)
  join public.iu_route_dead_letter d on d.id = o.id
 order by d.created_at, d.id
