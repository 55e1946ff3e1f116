-- Routes the next page of events, and takes the deliveries that it has queued. After the commit, the lease holder may
-- deliver these rows.
--
-- $1 text      worker
-- $2 int       maximum number of events
-- $3 text[]    routes to take deliveries for
-- $4 integer[] free capacity of each route, in deliveries
-- $5 bigint[]  for each route, only deliveries beyond this id that were never attempted

select b.answer::text as answer, t.*
  from public.fn_iu_route_worker_run($1, $2) b(answer)
  -- The second function needs the answer of the first one, so it runs after it.
  left join lateral public.fn_iu_delivery_hand_over(
       case when (b.answer ->> 'queued')::integer > 0 then $1 end, $3, $4, $5) t on true
