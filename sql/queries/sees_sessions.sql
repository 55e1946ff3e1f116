-- Whether this role sees the state and the age of other roles' sessions.

select pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'usage')
