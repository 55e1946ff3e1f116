-- The last attempt from before a snapshot; no row: there is none.
--
-- $1 text  the snapshot

select s.*
  from public.v_iu_trace_attempt s
 where s.xact_id < pg_snapshot_xmin($1::text::pg_snapshot)
 order by s.xact_id desc, s.id desc
 limit 1
