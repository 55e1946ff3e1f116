-- The numbers of rows of the business tables, which the package never changes.

select (select count(*) from public.information_unit) as information_unit,
       (select count(*) from public.unit_version) as unit_version,
       (select count(*) from public.iu_tree_path) as iu_tree_path
