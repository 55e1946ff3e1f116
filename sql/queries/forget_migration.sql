-- Records that a file was rolled back, by deleting it from the ledger.
--
-- $1 text  name

delete from public.iu_migration where name = $1
