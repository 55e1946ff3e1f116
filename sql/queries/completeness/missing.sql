-- Events that lack attempts; accepted ones come last.
--
-- $1 text  worker
-- $2 int   maximum number

select v.event_ref, v.event_type, v.found, v.wanted, v.found_at, v.restamped_at, v.accepted_at,
       case when v.accepted_at is not null then 'accepted'
            when v.waiting then 'waiting'
            when v.repairable then 'repairable'
            else 'not_repairable' end as state
  from public.v_iu_completeness_missing v
 where v.worker_name = $1
 order by v.accepted_at nulls first, v.event_seq, v.event_ref
 limit $2
