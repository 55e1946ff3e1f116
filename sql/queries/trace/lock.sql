-- Makes this transaction the only reader of an export until it ends. False: another reader holds the lock.
--
-- $1 int   first key of the lease
-- $2 text  name of the export

select pg_try_advisory_xact_lock($1, hashtext($2))
