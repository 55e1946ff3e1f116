-- Up to three holders of locks on a partition or on the outbox, the oldest transaction first; prepared transactions
-- have no session.
--
-- $1 oid  partition

with lock as (
    select distinct l.pid, l.virtualtransaction
      from pg_locks l
     where l.relation in ($1::oid, 'public.event_outbox'::regclass) and l.granted
), holder as (
    select format('pid %s, %s, %s', a.pid, coalesce(nullif(a.application_name, ''), a.usename, 'unnamed'), a.state) as who,
           coalesce(a.xact_start, a.backend_start) as since
      from pg_stat_activity a
     where a.pid <> pg_backend_pid() and a.pid in (select k.pid from lock k)
    union all
    select format('prepared transaction %s of %s', x.gid, x.owner), x.prepared
      from pg_prepared_xacts x
     where exists (select from pg_locks l
                     join lock k on k.virtualtransaction = l.virtualtransaction and k.pid is null
                    where l.pid is null and l.locktype = 'transactionid' and l.transactionid = x.transaction)
)
select format('%s for %s s', h.who, round(extract(epoch from clock_timestamp() - h.since))) as who
  from holder h
 order by h.since
 limit 3
