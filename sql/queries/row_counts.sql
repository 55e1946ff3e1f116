-- The numbers of rows of the business tables of IU Core, which the package never changes. The neutral base has none of them.

select (select count(*) from public.information_unit) as information_unit,
       (select count(*) from public.unit_version) as unit_version,
       (select count(*) from public.iu_tree_path) as iu_tree_path
