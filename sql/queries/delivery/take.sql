-- The next deliveries, a row each, and a row for each route.
--
-- $1 text      worker
-- $2 text[]    wanted: routes
-- $3 integer[] room for so many deliveries
-- $4 bigint[]  never attempted: beyond this id
-- $5 bigint[]  room for so many bytes of payload
-- $6 bigint[]  ids that are in flight, of deliveries that were attempted before
-- $7 text[]    freed subjects: routes
-- $8 bigint[]  freed subjects: keys
-- $9 bigint    largest payload that is delivered, in bytes

select t.*
  from public.fn_iu_delivery_take($1, $2, $3, $4, $5, $6, $7, $8, $9) t
