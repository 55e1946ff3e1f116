-- The kind of table that the outbox is: whether it is partitioned, by created_at alone, and whether this role may
-- change its partitions.

select c.relkind = 'p' as partitioned,
       exists (select from pg_partitioned_table t
                 join pg_attribute a on a.attrelid = t.partrelid and a.attnum = t.partattrs[0]
                where t.partrelid = c.oid and t.partstrat = 'r' and t.partnatts = 1 and a.attname = 'created_at') as by_time,
       pg_has_role(c.relowner, 'usage') as owner
  from pg_class c
 where c.oid = 'public.event_outbox'::regclass
