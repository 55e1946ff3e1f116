-- The size of the outbox in bytes, without its indexes: the part that a full scan reads.

select pg_relation_size('public.event_outbox')
       + coalesce((select sum(pg_relation_size(p.relid)) from pg_partition_tree('public.event_outbox') p
                    where p.relid <> 'public.event_outbox'::regclass), 0)::bigint
