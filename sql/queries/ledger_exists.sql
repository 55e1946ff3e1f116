-- Whether there is a ledger here.

select to_regclass('public.iu_migration') is not null
