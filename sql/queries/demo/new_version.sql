-- Creates the next version of a unit; trg_iu_out_version writes its event in the same transaction.
--
-- $1 uuid  unit

insert into public.unit_version (unit_id, version_seq, actor_ref)
select $1, max(v.version_seq) + 1, 'demo' from public.unit_version v where v.unit_id = $1
returning id
