-- The state that functions/history must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W21', 'workers with a cursor of a foreign history', '0',
           (select count(*)::text from public.iu_route_worker_cursor w
             where public.fn_iu_outbox_refusal(w.lineage, w.prev) is not null)
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
