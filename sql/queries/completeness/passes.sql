-- The last completeness check of every worker, and the running one. Incomplete events are counted up to a bound.
--
-- $1 bigint  bound: a larger number is the bound plus one; null: all are counted

select v.worker_name, v.finished_at, v.checked, v.seconds,
       (select count(*)
          from (select from public.iu_completeness_missing m
                 where m.worker_name = v.worker_name and m.accepted_at is null and m.confirmed_at is not null
                 limit $1::bigint + 1) x) as missing,
       (select count(*)
          from (select from public.iu_completeness_missing m
                 where m.worker_name = v.worker_name and m.accepted_at is not null
                 limit $1::bigint + 1) x) as accepted,
       v.started_at, v.checked_so_far
  from public.v_iu_completeness v
 order by v.worker_name
