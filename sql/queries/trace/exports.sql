-- Every export of traces: what it has done, what waits for it, and why its cursor is not believed, if it is not.

select t.name, t.exported, t.rejected, t.ignored, t.last_export_at, t.created_at,
       public.fn_iu_outbox_refusal(t.lineage, t.prev) as refusal,
       (select m.figure::bigint from public.v_iu_measure m where m.what = 'lag_items' and m.part = 'trace') as waiting,
       (select m.figure from public.v_iu_measure m where m.what = 'lag_seconds' and m.part = 'trace') as seconds
  from public.iu_trace_cursor t
 order by t.name
