-- Every trace export: its totals, its waiting rows, and the reason why its cursor is not believed (null: it is).

select t.name, t.exported, t.rejected, t.ignored, t.last_export_at, t.created_at,
       public.fn_iu_outbox_refusal(t.lineage, t.prev) as refusal, coalesce(l.items, 0) as waiting,
       coalesce(greatest(extract(epoch from clock_timestamp() - l.since), 0), 0)::double precision as seconds
  from public.iu_trace_cursor t
  join public.v_iu_trace_lag l on l.name = t.name
 order by t.name
