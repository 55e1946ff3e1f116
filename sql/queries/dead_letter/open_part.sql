-- The next open dead letters that pass the filters, oldest first.
--
-- $1 text         route, or null
-- $2 text         failure code, or null
-- $3 timestamptz  created since then, or null
-- $4 uuid         event, or null
-- $5 text         subject, or null
-- $6 timestamptz  created until then
-- $7 timestamptz  created_at of the last dead letter of the previous part, or null
-- $8 uuid         id of the last dead letter of the previous part, or null
-- $9 int          maximum number

select d.id, d.created_at
  from public.fn_iu_dead_letters_open($1, $2, $3, $4, $5, $6, $7, $8, $9) o(id)
  join public.iu_route_dead_letter d on d.id = o.id
 order by d.created_at, d.id
