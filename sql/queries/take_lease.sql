-- Become the one active consumer of a worker, for the life of this session; else who is it, and whether all who hold it
-- are strangers: roles that could not work if they wanted to. Anybody who may connect can take an advisory lock.
--
-- $1 int   first key of the lease
-- $2 text  worker
--
-- Only tried, never waited for: a statement that waits holds a snapshot, and vacuum behind it.

with taken as materialized (select pg_try_advisory_lock($1, hashtext($2)) as mine)
select t.mine, coalesce(h.words, 'nobody any more') as words, coalesce(h.strangers, false) as strangers
  from taken t
  left join lateral (
       select string_agg(x.words, '; ' order by x.stranger, x.pid) as words, bool_and(x.stranger) as strangers
         from public.fn_iu_lease_holders(case when not t.mine then $1 end, $2) x) h on true
