-- The dead letters about a subject. The subject is read from the snapshot, which not every role may read.
--
-- $1 text         event_subject_ref or canonical_address      $2 bool  include resolved ones
-- $3 timestamptz  created since then, or null

select d.id
  from public.iu_route_dead_letter d
 where ($2 or d.resolved_at is null)
   and ($3::timestamptz is null or d.created_at >= $3)
   and $1 in (d.event_snapshot ->> 'event_subject_ref', d.event_snapshot ->> 'canonical_address')
