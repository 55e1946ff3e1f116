-- The partitions of a partitioned outbox that hold rows; no row: it is a plain table.

select p.relid::oid as oid, p.relid::regclass::text as name, k.relnamespace::regnamespace::text as schema
  from pg_partition_tree('public.event_outbox') p
  join pg_class k on k.oid = p.relid
 where p.isleaf and p.relid <> 'public.event_outbox'::regclass
 order by p.relid
