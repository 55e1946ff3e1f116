-- Be the one reader of an export until the end of this transaction. False: somebody is.
--
-- $1 int   first key of the lease
-- $2 text  name of the export

select pg_try_advisory_xact_lock($1, hashtext($2))
