-- Creates a unit with its first version, which emits no event.
--
-- $1 text  address

with born as (
    insert into public.information_unit (canonical_address, title) values ($1, 'Demo ' || $1) returning id)
insert into public.unit_version (unit_id, version_seq, actor_ref)
select b.id, 1, 'demo' from born b
returning unit_id
