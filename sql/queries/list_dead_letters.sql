-- Dead letters, the oldest first.
--
-- $1 bool  resolved ones too      $2 text  route, or null      $3 int  how many at most

select d.id, d.worker_name, d.event_ref, d.route_code, d.failure_code, d.failure_detail, d.attempt_no,
       d.replay_count, d.created_at, d.resolved_at, d.resolution
  from public.iu_route_dead_letter d
 where ($1 or d.resolved_at is null) and ($2::text is null or d.route_code = $2)
 order by d.created_at, d.id
 limit $3
