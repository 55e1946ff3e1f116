-- One transaction of a burst: creates a number of further versions of every given unit.
--
-- $1 uuid[]  units     $2 int  versions each

insert into public.unit_version (unit_id, version_seq, actor_ref)
select u.id, m.highest + n, 'demo'
  from unnest($1::uuid[]) u(id)
 cross join lateral (select max(v.version_seq) as highest from public.unit_version v where v.unit_id = u.id) m
 cross join generate_series(1, $2::int) n
