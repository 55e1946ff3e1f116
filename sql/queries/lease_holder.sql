-- Who holds a worker's lease: for the log of a consumer that stands by.
--
-- $1 int   first key of the lease
-- $2 text  worker

select coalesce(
    (select format('pid %s, %s%s', a.pid, coalesce(nullif(a.application_name, ''), 'unnamed'),
                   coalesce(', from ' || host(a.client_addr), ''))
       from pg_locks l
       join pg_stat_activity a on a.pid = l.pid
      where l.locktype = 'advisory' and l.granted and l.objsubid = 2
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and l.classid::bigint = $1 and l.objid = (hashtext($2)::bigint & 4294967295)::oid
      limit 1),
    'nobody any more')
