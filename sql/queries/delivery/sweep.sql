-- Which subjects of some routes may go on, and where a delivery without a subject waits that the position has passed.
--
-- $1 text      worker
-- $2 text[]    routes
-- $3 bigint[]  subjects from this key on; null: none
-- $4 bigint[]  deliveries without a subject beyond this id; null: none
-- $5 bigint[]  up to the position

select w.route, s.keys, s.key, f.first, f.behind
  from unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[]) w(route, key, behind, after)
 cross join lateral public.fn_iu_delivery_sweep($1, w.route, w.key, w.after) s
 cross join lateral public.fn_iu_delivery_seek($1, w.route, w.behind, w.after) f
