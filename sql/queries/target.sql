-- The server, database and role of this connection.

select current_database() as database, current_setting('server_version') as server_version,
       current_setting('server_version_num')::int as version_num, session_user as "user",
       current_setting('server_encoding') as encoding,
       (select s.system_identifier::text from pg_control_system() s) as system_identifier,
       pg_database_size(current_database()) as size_bytes,
       (select r.rolsuper or has_schema_privilege('public', 'create') from pg_roles r where r.rolname = current_user)
           as may_create
