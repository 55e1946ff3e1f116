-- Every export of traces: what it has done, what waits for it, and why its cursor is not believed, if it is not.

select t.name, t.exported, t.rejected, t.ignored, t.last_export_at, t.created_at,
       public.fn_iu_outbox_refusal(t.lineage, t.prev) as refusal, l.waiting, l.seconds
  from public.iu_trace_cursor t
 cross join (select (max(m.figure) filter (where m.what = 'lag_items'))::bigint as waiting,
                    max(m.figure) filter (where m.what = 'lag_seconds') as seconds
               from public.v_iu_measure m
              where m.part = 'trace') l
 order by t.name
