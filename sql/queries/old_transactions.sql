-- Who keeps events open: transactions of this cluster that have an xid and are older than a minute, prepared too.

select 'pid ' || a.pid || ' (' || coalesce(nullif(a.application_name, ''), 'unnamed') || ', ' || a.datname || ', '
       || a.state || ')' as who,
       extract(epoch from now() - a.xact_start)::float8 as seconds
  from pg_stat_activity a
 where a.backend_xid is not null and a.xact_start < now() - interval '1 minute' and a.pid <> pg_backend_pid()
union all
select 'prepared transaction ' || p.gid || ' (' || p.owner || ', ' || p.database || ')',
       extract(epoch from now() - p.prepared)::float8
  from pg_prepared_xacts p
 where p.prepared < now() - interval '1 minute'
 order by seconds desc
 limit 5
