-- Records a file as applied.
--
-- $1 text  name     $2 text  checksum     $3 int  duration, ms     $4 text  evidence, JSON

insert into public.iu_migration (name, checksum, duration_ms, evidence) values ($1, $2, $3, $4::text::jsonb)
