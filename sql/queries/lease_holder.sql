-- The holders of a worker's lease in words, and whether all of them are strangers (take_lease.sql).
--
-- $1 int   first key of the lease
-- $2 text  worker

select coalesce(string_agg(h.words, '; ' order by h.stranger, h.pid), 'nobody any more') as words,
       coalesce(bool_and(h.stranger), false) as strangers
  from public.fn_iu_lease_holders($1, $2) h
