-- The files that are recorded as applied, in the order of their application.

select m.name, m.checksum, m.schema_version, m.applied_at, m.applied_by, m.duration_ms, m.evidence::text as evidence
  from public.iu_migration m
 order by m.applied_at, m.name
