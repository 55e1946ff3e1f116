-- The state that functions/metrics must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W26', 'metrics have every gate', '3',
           (select count(*)::text from public.fn_iu_metrics(null) m where m.what = 'gate')
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
