-- The next deliveries, one row each, and one row for each route. The first column is empty: in run_batch_and_take.sql it
-- is the answer of the batch.
--
-- $1 text      worker
-- $2 text[]    routes to take deliveries for
-- $3 integer[] free capacity of each route, in deliveries
-- $4 bigint[]  for each route, only deliveries beyond this id that were never attempted
-- $5 bigint[]  free capacity of each route, in bytes of payload
-- $6 bigint[]  ids of deliveries that the consumer holds: those that were attempted before, and trial deliveries
-- $7 text[]    subjects with a settled first delivery: routes
-- $8 bigint[]  subjects with a settled first delivery: keys
-- $9 bigint    largest payload that is delivered, in bytes

select null::text as answer, t.*
  from public.fn_iu_delivery_take($1, $2, $3, $4, $5, $6, $7, $8, $9) t
