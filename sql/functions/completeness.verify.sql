-- The state that functions/completeness must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W20', 'functions of the completeness check present', '3',
           (select count(*)::text from pg_catalog.pg_proc p
             where p.pronamespace = 'public'::regnamespace
               and p.proname in ('fn_iu_completeness_page', 'fn_iu_completeness_confirm', 'fn_iu_completeness_repair'))
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
