-- Creates the login role of the demo's consumer, with the password in CONSUMER_PASSWORD. psql runs it after roles.sql.
--
-- needs: deploy/postgres/roles.sql
-- locks: nothing that other sessions use

\getenv password CONSUMER_PASSWORD

select 'create role iu_demo_consumer login in role iu_listen_consumer, iu_listen_exporter'
 where not exists (select from pg_catalog.pg_roles r where r.rolname = 'iu_demo_consumer')
\gexec

alter role iu_demo_consumer password :'password';
