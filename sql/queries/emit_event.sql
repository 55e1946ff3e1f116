-- Emits events through the governed emitter. An id is null if the master gate is closed.
--
-- $1 text  type    $2 text  address    $3 uuid  subject, or null for a new one for each event    $4 text  actor
-- $5 text  payload, JSON               $6 int   number of events

select public.fn_iu_emit_event($1, $2, coalesce($3, gen_random_uuid()), $4, $5::text::jsonb) as id
  from generate_series(1, $6)
