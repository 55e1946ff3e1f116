-- The trigger functions of adopted tables, each with its comment, its text and the state of its trigger.
--
-- $1 text  the name of the trigger     $2 text  the beginning of the names of the functions

select p.proname::text as function, obj_description(p.oid, 'pg_proc') as comment, p.prosrc as source,
       t.tgenabled::text as enabled, t.tgrelid::regclass::text as trigger_table
  from pg_proc p
  left join pg_trigger t on t.tgfoid = p.oid and t.tgname = $1 and t.tgparentid = 0
 where p.pronamespace = 'public'::regnamespace and starts_with(p.proname, $2)
 order by p.proname
