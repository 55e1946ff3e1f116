delete from public.iu_migration where name = '{name}';
insert into public.iu_migration (name, checksum, schema_version, evidence)
values ('{name}', '{checksum}', '{version}', '{{"source": "iu-listen sql"}}');
