-- Accepts all incomplete events of a worker: they stay listed, and no longer raise an alarm.
--
-- $1 text  worker

with accepted as (
    update public.iu_completeness_missing m
       set accepted_at = now()
     where m.worker_name = $1 and m.confirmed_at is not null and m.accepted_at is null
    returning 1)
select count(*) from accepted
