-- The state that functions/outbox_position must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W13', 'cursors were written in the history of this database', 'own',
           coalesce((select public.fn_iu_outbox_refusal(a.lineage, '3:3:') from public.iu_outbox_anchor a), 'own')
    union all
    select 'W17', 'function for consumed events present', '1',
           (select count(*)::text from pg_catalog.pg_proc p
             where p.pronamespace = 'public'::regnamespace and p.proname = 'fn_iu_outbox_consumed')
)
select c.id, c.label, c.expected, coalesce(c.observed, 'missing') as observed,
       c.expected is not distinct from c.observed as pass
  from checks c
 order by c.id;
