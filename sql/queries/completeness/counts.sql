-- The number of events that lack attempts, and the effect of a repair.
--
-- $1 text  worker

select count(*) filter (where v.accepted_at is null) as missing,
       count(*) filter (where v.accepted_at is null and not v.waiting and v.repairable) as repairable,
       count(*) filter (where v.accepted_at is null and not v.waiting and not v.repairable) as not_repairable,
       count(*) filter (where v.accepted_at is null and v.waiting) as waiting,
       count(*) filter (where v.accepted_at is not null) as accepted
  from public.v_iu_completeness_missing v
 where v.worker_name = $1
