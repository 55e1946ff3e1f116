-- Whether this server takes no writes: a standby, or one that is set read-only.

select pg_is_in_recovery() or current_setting('default_transaction_read_only') = 'on'
