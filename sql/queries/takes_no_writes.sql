-- The reason why this session takes no writes, with a remedy; no row: it takes them.

select 'the server takes no writes: it is a standby' as problem, 'Connect to the primary.' as hint
 where pg_is_in_recovery()
union all
select 'the server takes no writes: default_transaction_read_only is on ' || at.place, at.hint
  from pg_settings s
 cross join lateral (
       select case s.source
                  when 'database' then 'for the database'
                  when 'user' then 'for the role'
                  when 'database user' then 'for the role in this database'
                  when 'client' then 'by the client'
                  else 'for the server' end as place,
              case s.source
                  when 'database' then format('alter database %I reset default_transaction_read_only', current_database())
                  when 'user' then format('alter role %I reset default_transaction_read_only', session_user)
                  when 'database user' then format('alter role %I in database %I reset default_transaction_read_only',
                                                   session_user, current_database())
                  when 'client' then 'Take it out of the connection string (options), or out of PGOPTIONS.'
                  else 'Look at the configuration of the server; some platforms set it when the disk is full.' end as hint
       ) at
 where s.name = 'default_transaction_read_only' and s.setting = 'on' and not pg_is_in_recovery()
