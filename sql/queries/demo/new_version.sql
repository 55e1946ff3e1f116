-- A unit gets its next version: trg_iu_out_version writes the event, in this same transaction.
--
-- $1 uuid  unit

insert into public.unit_version (unit_id, version_seq, actor_ref)
select $1, max(v.version_seq) + 1, 'demo' from public.unit_version v where v.unit_id = $1
returning id
