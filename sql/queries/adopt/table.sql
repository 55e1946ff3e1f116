-- The columns and the unique indexes of a table of an application. No row: there is no such table.
--
-- $1 text  the table, as regclass reads it

select n.nspname::text as schema, c.relname::text as name, c.relkind::text as kind,
       (select jsonb_agg(jsonb_build_object(
                   'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'not_null', a.attnotnull,
                   'built_in', t.typnamespace = 'pg_catalog'::regnamespace) order by a.attnum)
          from pg_attribute a join pg_type t on t.oid = a.atttypid
         where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
       (select coalesce(jsonb_agg((select jsonb_agg(a.attname order by a.attnum) from pg_attribute a
                                    where a.attrelid = c.oid and a.attnum = any (i.indkey::int2[]))), '[]')
          from pg_index i
         where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null)
           as unique_indexes
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.oid = to_regclass($1)
