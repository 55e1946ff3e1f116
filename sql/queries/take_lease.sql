-- Tries to take the lease of a worker for the life of this session. If another session holds it, answers the
-- holders, and whether all of their roles are unauthorized, that is, have no rights for the work; any role that may
-- connect can take an advisory lock.
--
-- $1 int   first key of the lease
-- $2 text  worker
--
-- The lock is only tried and never waited for: a waiting statement holds a snapshot, which holds back vacuum.

with taken as materialized (select pg_try_advisory_lock($1, hashtext($2)) as mine)
select t.mine, h.description, coalesce(h.all_unauthorized, false) as all_unauthorized
  from taken t
  left join lateral (
       select string_agg(x.description, '; ' order by x.unauthorized, x.pid) as description, bool_and(x.unauthorized) as all_unauthorized
         from public.fn_iu_lease_holders(case when not t.mine then $1 end, $2) x) h on true
