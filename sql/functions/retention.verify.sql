-- The state that functions/retention must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W22', 'functions of retention present', '4',
           (select count(*)::text from pg_catalog.pg_proc p
             where p.pronamespace = 'public'::regnamespace
               and p.proname in ('fn_iu_retention_releasable', 'fn_iu_retention_domains', 'fn_iu_retention_run',
                                 'fn_iu_retention_plan'))
    union all
    select 'W23', 'triggers of stamp and bell fire always in every partition', '0 without',
           (select count(*) || ' without'
              from pg_catalog.pg_partition_tree('public.event_outbox') p
             cross join unnest(array['zz_event_outbox_stamp', 'zz_event_outbox_restamp', 'zz_event_outbox_bell']) t(name)
             where not exists (select from pg_catalog.pg_trigger g
                                where g.tgrelid = p.relid and g.tgname = t.name and g.tgenabled = 'A'))
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
