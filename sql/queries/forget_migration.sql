-- Record a file as rolled back.
--
-- $1 text  name

delete from public.iu_migration where name = $1
