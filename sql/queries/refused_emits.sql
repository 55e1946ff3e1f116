-- The number of events that the emitter has refused because their type is not registered; no row: it does not count
-- them.

select coalesce(s.last_value, 0) as refused
  from pg_catalog.pg_sequences s
 where s.schemaname = 'public' and s.sequencename = 'iu_emit_refused_seq'
