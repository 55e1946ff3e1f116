-- Tries to take the lease of a worker as in take_lease.sql. While an unauthorized session holds the lock, a row of iu_delivery_lease
-- replaces it. The lock is not tried while another consumer holds that row and works, because that consumer takes the
-- lock when that session has ended.
--
-- $1 int   first key of the lease
-- $2 text  worker
-- $3 text  name of the row
-- $4 uuid  this consumer

with other as materialized (
    select 'consumer ' || l.owner as description
      from public.iu_delivery_lease l
      join pg_stat_activity a on a.pid = l.backend and a.backend_start = l.backend_start
     where l.worker_name = $3 and l.owner <> $4 and not l.released
), taken as materialized (
    select case when exists (select from other) then false else pg_try_advisory_lock($1, hashtext($2)) end as mine)
select t.mine, coalesce((select o.description from other o) || coalesce(', although a foreign role holds the lock: ' || h.description, ''), h.description) as description,
       coalesce(h.all_unauthorized, false) and not exists (select from other) as all_unauthorized
  from taken t
  left join lateral (
       select string_agg(x.description, '; ' order by x.unauthorized, x.pid) as description, bool_and(x.unauthorized) as all_unauthorized
         from public.fn_iu_lease_holders(case when not t.mine then $1 end, $2) x) h on true
