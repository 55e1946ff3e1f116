-- The state that 025 must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W31', 'triggers that announce changes of routes and switches fire always', '2',
           (select count(*)::text from pg_catalog.pg_trigger t
             where t.tgenabled = 'A'
               and (t.tgrelid, t.tgname) in (('public.iu_outbound_route'::regclass, 'zz_iu_outbound_route_bell'),
                                             ('public.dot_config'::regclass, 'zz_dot_config_delivery_bell')))
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
