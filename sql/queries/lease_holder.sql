-- The holders of a worker's lease in words (null: there is none), and whether all of them are foreign sessions
-- (take_lease.sql).
--
-- $1 int   first key of the lease
-- $2 text  worker

select string_agg(h.description, '; ' order by h.unauthorized, h.pid) as description,
       coalesce(bool_and(h.unauthorized), false) as all_unauthorized
  from public.fn_iu_lease_holders($1, $2) h
