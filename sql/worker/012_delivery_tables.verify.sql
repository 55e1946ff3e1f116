-- The state that 012 must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W27', 'no route may deliver that is not on the list', 'guarded',
           (select case when count(*) = 2 then 'guarded' else 'a guard is missing' end
              from pg_catalog.pg_trigger t
             where t.tgenabled = 'A'
               and (t.tgrelid, t.tgname) in (('public.iu_outbound_route'::regclass, 'zz_iu_outbound_route_guard'),
                                             ('public.dot_config'::regclass, 'zz_dot_config_live_routes')))
    union all
    select 'W28', 'routes that may deliver (inert)', '0',
           (select count(*)::text from public.iu_outbound_route r where public.fn_iu_delivery_closed_switch(r.route_code) is null)
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
