-- The deliveries of a single new event that a batch will queue, so that their calls can begin before the commit of that
-- batch. The first column is empty, as in take.sql.
--
-- $1 text    worker
-- $2 text[]  routes with free capacity

select null::text as answer, t.*
  from public.fn_iu_delivery_peek($1, $2) t
