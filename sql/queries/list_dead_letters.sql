-- Dead letters, newest first.
--
-- The dead letters of an event are found by their keys, as in trace/letters_of: by every route that exists, or that a
-- completeness check has met.
--
-- $1 bool         include resolved ones
-- $2 text[]       routes, or null
-- $3 text         failure code, or null
-- $4 timestamptz  created since then, or null
-- $5 uuid         event, or null
-- $6 uuid[]       ids: only these, or null
-- $7 uuid         dead letter: only older ones, or null
-- $8 int          maximum number

select d.id, d.worker_name, d.event_ref, d.route_code, d.failure_code, d.failure_detail, d.attempt_no,
       d.replay_count, d.created_at, d.resolved_at, d.resolution
  from public.iu_route_dead_letter d
 where ($1 or d.resolved_at is null)
   and ($2::text[] is null or d.route_code = any ($2))
   and ($3::text is null or d.failure_code = $3)
   and ($4::timestamptz is null or d.created_at >= $4)
   and ($5::uuid is null or d.idempotency_key = any (array(
           select public.fn_iu_idempotency_key(c.route_code, $5::uuid)
             from (select r.route_code from public.iu_outbound_route r
                   union
                   select unnest(u.codes) from public.iu_completeness_pass u
                   union
                   select '(none)') c)))
   and ($6::uuid[] is null or d.id = any ($6))
   and ($7::uuid is null or (d.created_at, d.id) < (select b.created_at, b.id from public.iu_route_dead_letter b
                                                     where b.id = $7))
 order by d.created_at desc, d.id desc
 limit $8
