-- Records a file as applied.
--
-- $1 text  name
-- $2 text  checksum
-- $3 text  schema version, as major.minor
-- $4 int   duration, in milliseconds
-- $5 text  evidence, JSON

insert into public.iu_migration (name, checksum, schema_version, duration_ms, evidence)
values ($1, $2, $3, $4, $5::text::jsonb)
