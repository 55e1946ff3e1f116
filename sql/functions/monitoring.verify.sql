-- The state that functions/monitoring must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W18', 'views of health and blockers present', '2',
           (select count(*)::text from pg_catalog.pg_class k
             where k.oid in (to_regclass('public.v_iu_worker_health'), to_regclass('public.v_iu_blocker')))
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
