-- Whether this database has a ledger.

select to_regclass('public.iu_migration') is not null
