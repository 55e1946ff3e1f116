-- Whether the base of this database is that of IU Core; else it is the neutral base.

select to_regclass('public.information_unit') is not null
