-- Months without a partition, from the present one on, with the statements that create it, and the number of rows in
-- the way. A month that is covered in part, because existing partitions have other bounds, gets a partition for the
-- rest.
--
-- A partition is created as a plain table and then attached: CREATE TABLE ... PARTITION OF would block all readers and
-- producers.
--
-- Months are computed in UTC. timestamptz + interval '1 month' would be computed in the time zone of the session, where
-- the month ends at another time.
--
-- The rows in the way are counted up to a bound; a larger number is the bound plus one. No index finds them: if there are
-- fewer, the whole default partition is read, as by the ATTACH PARTITION itself.
--
-- $1 integer  number of months after the present one     $2 bigint  bound; null: all are counted

with month as (
    select tstzrange((t.this + m.n * interval '1 month') at time zone 'UTC',
                     (t.this + (m.n + 1) * interval '1 month') at time zone 'UTC') as whole
      from generate_series(0, $1::int) m(n)
     cross join (select date_trunc('month', now() at time zone 'UTC') as this) t
), part as (
    select coalesce(range_agg(tstzrange(p."from", p."to")) filter (where not p.is_default), '{}') as covered, bool_or(p.is_default) as has_default
      from public.fn_iu_outbox_partitions() p
), gap as (
    select 'event_outbox_' || to_char(lower(g.free) at time zone 'UTC', '"y"YYYY"m"MM')
           || case when lower(g.free) > lower(m.whole) then to_char(lower(g.free) at time zone 'UTC', '"d"DD') else '' end
           as name,
           lower(g.free) as "from", upper(g.free) as "to", p.has_default
      from month m
     cross join part p
     cross join lateral unnest(tstzmultirange(m.whole) - p.covered) g(free)
)
select g.name, g."from", g."to", to_regclass(format('public.%I', g.name)) is not null as taken,
       case when g.has_default
            then (select count(*)
                    from (select from public.event_outbox o
                           where o.created_at >= g."from" and o.created_at < g."to"
                           limit $2::bigint + 1) x)
            else 0 end as in_the_way,
       format('create table public.%1$I (like public.event_outbox including all excluding identity excluding indexes); '
              'alter table public.%1$I owner to %2$I; '
              'comment on table public.%1$I is %3$L; '
              'alter table public.event_outbox attach partition public.%1$I for values from (%4$L) to (%5$L)',
              g.name, pg_get_userbyid(c.relowner), 'Part of event_outbox, by created_at.',
              to_char(g."from" at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US"+00"'),
              to_char(g."to" at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US"+00"')) as statement
  from gap g
  join pg_class c on c.oid = 'public.event_outbox'::regclass
 order by g."from"
