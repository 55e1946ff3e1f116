-- Tries to take the lease of a worker as in take_lease.sql. While a stranger holds the lock, a row of iu_delivery_lease
-- replaces it. The lock is not tried while another consumer holds that row and works, because that consumer takes the
-- lock when the stranger has gone.
--
-- $1 int   first key of the lease
-- $2 text  worker
-- $3 text  name of the row
-- $4 uuid  this consumer

with other as materialized (
    select 'consumer ' || l.owner as words
      from public.iu_delivery_lease l
      join pg_stat_activity a on a.pid = l.backend and a.backend_start = l.backend_start
     where l.worker_name = $3 and l.owner <> $4 and not l.released
), taken as materialized (
    select case when exists (select from other) then false else pg_try_advisory_lock($1, hashtext($2)) end as mine)
select t.mine, coalesce((select o.words from other o) || coalesce(', although a foreign role holds the lock: ' || h.words, ''), h.words) as words,
       coalesce(h.strangers, false) and not exists (select from other) as strangers
  from taken t
  left join lateral (
       select string_agg(x.words, '; ' order by x.stranger, x.pid) as words, bool_and(x.stranger) as strangers
         from public.fn_iu_lease_holders(case when not t.mine then $1 end, $2) x) h on true
