-- The identity of the present history of this database.

select x.lineage::text from public.iu_outbox_anchor x
