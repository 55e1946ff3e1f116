-- Tables that the package reads and that have row level security, and whether rows are hidden from this role.

select c.relname::text as name, row_security_active(c.oid) as active
  from pg_class c
 where c.relnamespace = 'public'::regnamespace and c.relrowsecurity
   and (c.relname in ('dot_config', 'event_type_registry', 'event_outbox') or c.relname like 'iu\_%')
 order by c.relname
