-- The history that this database is in.

select x.lineage::text from public.iu_outbox_anchor x
