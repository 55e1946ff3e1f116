-- Subjects of some routes whose first delivery may go on, and the first waiting delivery without a subject that the
-- position has passed.
--
-- $1 text      worker
-- $2 text[]    routes
-- $3 bigint[]  for each route: subjects from this key on; null: none
-- $4 bigint[]  for each route: deliveries without a subject beyond this id; null: none
-- $5 bigint[]  for each route: deliveries up to this position

select w.route, s.keys, s.key as next_key, f.first as first_id, f.behind as after_id
  from unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[]) w(route, key, behind, after)
 cross join lateral public.fn_iu_delivery_sweep($1, w.route, w.key, w.after) s
 cross join lateral public.fn_iu_delivery_seek($1, w.route, w.behind, w.after) f
