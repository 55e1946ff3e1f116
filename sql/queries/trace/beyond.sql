-- The youngest attempts after a position, at most ten.
--
-- $1 text    snapshot of the excluded rows
-- $2 text    transaction of the last attempt
-- $3 bigint  id of the last attempt

select s.*
  from public.v_iu_trace_attempt s
 where (s.xact_id, s.id) > (greatest(pg_snapshot_xmax($1::text::pg_snapshot), $2::text::xid8), $3)
   and s.xact_id < pg_snapshot_xmax(pg_current_snapshot())
 order by s.xact_id desc, s.id desc
 limit 10
