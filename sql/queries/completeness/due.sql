-- The seconds until a completeness check of a worker is due. Negative: it is overdue; zero: a pass is running, or none
-- has ended.
--
-- $1 text    worker
-- $2 float8  seconds between the end of a pass and the next one

select coalesce((select extract(epoch from a.finished_at - clock_timestamp()) + $2::float8
                   from public.iu_completeness_pass a
                  where a.worker_name = $1 and a.started_at is null), 0)::float8
