-- The triggers that the package relies on, and whether each fires always.

select c.relname || '.' || t.tgname as name, t.tgenabled = 'A' as always, t.tgenabled = 'D' as disabled
  from pg_trigger t
  join pg_class c on c.oid = t.tgrelid
 where t.tgname in ('zz_event_outbox_stamp', 'zz_event_outbox_restamp', 'zz_event_outbox_bell', 'zz_dot_config_bell')
 order by name
