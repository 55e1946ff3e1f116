-- Emit events through the governed emitter; null ids: the master gate is closed or the type is not registered.
--
-- $1 text  type    $2 text  address    $3 uuid  subject, or null for a new one each    $4 text  actor
-- $5 text  payload, JSON               $6 int   how many

select public.fn_iu_emit_event($1, $2, coalesce($3, gen_random_uuid()), $4, $5::text::jsonb) as id
  from generate_series(1, $6)
