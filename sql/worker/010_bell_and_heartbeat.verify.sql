-- The state that 010 must have left. The columns are those of runtime/070.

with checks (id, label, expected, observed) as (
    select 'W15', 'triggers of the bell are deferred and fire always', '2',
           (select count(*)::text from pg_catalog.pg_trigger t
             where t.tgenabled = 'A' and t.tginitdeferred
               and (t.tgrelid, t.tgname) in (('public.event_outbox'::regclass, 'zz_event_outbox_bell'),
                                             ('public.dot_config'::regclass, 'zz_dot_config_bell')))
    union all
    select 'W16', 'heartbeat table present', '1',
           (select count(*)::text from pg_catalog.pg_class k
             where k.oid = to_regclass('public.iu_consumer_heartbeat'))
)
select c.id, c.label, c.expected, c.observed, c.expected = c.observed as pass
  from checks c
 order by c.id;
