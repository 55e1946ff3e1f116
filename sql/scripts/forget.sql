delete from public.iu_migration where name = '{name}';
