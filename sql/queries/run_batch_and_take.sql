-- Route the next page of events, and take what it has queued: the rows are ours to deliver when this is committed.
--
-- $1 text      worker
-- $2 int       how many events at most
-- $3 text[]    wanted: routes
-- $4 integer[] room for so many
-- $5 bigint[]  never tried: beyond this id

select b.answer::text as answer, t.*
  from public.fn_iu_route_worker_run($1, $2) b(answer)
  -- The second function waits for the first: it needs its answer.
  left join lateral public.fn_iu_delivery_hand_over(
       case when (b.answer ->> 'queued')::integer > 0 then $1 end, $3, $4, $5) t on true
