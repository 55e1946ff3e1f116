-- What 013 must have left behind. Same columns as runtime/070.

with checks (id, label, expected, observed) as (
    select 'W17', 'watches can tell what is consumed', '1',
           (select count(*)::text from pg_catalog.pg_proc p
             where p.pronamespace = 'public'::regnamespace and p.proname = 'fn_iu_outbox_consumed')
    union all
    select 'W18', 'every trigger of ours fires always', '0',
           (select count(*)::text from public.v_iu_culprit v where v.what = 'trigger')
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
