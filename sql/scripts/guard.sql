-- Refuses a database with another schema version than {version}.

do $guard$
declare
    v_found text := (select m.schema_version from public.iu_migration m
                      order by string_to_array(m.schema_version, '.')::integer[] desc limit 1);
begin
    if v_found is distinct from '{version}' then
        raise exception 'this script is for schema {version}, and this database has schema %', v_found
            using hint = 'iu-listen sql --since gives the script for another version.';
    end if;
end
$guard$;
