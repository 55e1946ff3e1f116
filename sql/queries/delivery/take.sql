-- The next deliveries, a row each, and a row for each route.
--
-- $1 text      worker
-- $2 text[]    wanted: routes
-- $3 integer[] room for so many
-- $4 bigint[]  never tried: beyond this id
-- $5 bigint[]  ids that are under way
-- $6 text[]    freed subjects: routes
-- $7 bigint[]  subject keys

select t.*
  from public.fn_iu_delivery_take($1, $2, $3, $4, $5, $6, $7) t
