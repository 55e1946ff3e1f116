-- The partitions of the outbox, and whether each may be removed as a whole. That is allowed if it ends before the
-- retention begins and every event in it may be deleted: its domain has a cursor, all workers have read it, and it is
-- old enough. Only partitions that end early enough are read, through the outbox with the bounds of the partition.
--
-- One event that must stay keeps the whole partition. With a bound, as many events of a partition are judged; more than
-- ten partitions share ten times the bound, as long as each has a tenth of it. "capped": there are more events. Then the
-- figures are those of the judged events, and "whole" is null if none of them must stay. The number of the first event that
-- is younger than the policy is searched only without a bound, because that search reads old events, too.
--
-- $1 text  interval     $2 oid  one partition; null: all     $3 bigint  bound for one partition; null: all are judged

with part as materialized (
    select p.*, t.cutoff,
           coalesce(p."to" <= t.cutoff, false) and not p.is_default and not p.pending as early
      from (select (now() at time zone 'UTC' - $1::text::interval) at time zone 'UTC' as cutoff) t
     cross join public.fn_iu_outbox_partitions() p
     where p.part::oid = $2 or $2 is null
), domain as materialized (
    select d.event_domain, d.cursors, d.refusing, d.young_seq, d.young_id
      from (select max(p.cutoff) as cutoff from part p) t
     cross join public.fn_iu_retention_domains(case when $3::bigint is null then t.cutoff end) d
), bound as materialized (
    select least($3::bigint, greatest($3::bigint / 10, 10 * $3::bigint / nullif(count(*), 0))) as most
      from part p where p.early
)
select p.part::oid as oid, regexp_replace(p.part::text, '^public\.', '') as name, p."from", p."to", p.is_default, p.pending, p.closed,
       coalesce(f.rows, 0) as rows, coalesce(f.others, 0) as others, coalesce(f.held, 0) as held, f.who,
       coalesce(f.capped, false) as capped,
       case when not (p.is_table and p.early and f.others = 0 and f.held = 0
                      and exists (select from domain)
                      and not exists (select from domain d where d.refusing is not null)) then false
            when not f.capped then true end as whole
  from part p
 cross join bound b
  left join lateral (
       select least(count(*), b.most) as rows, coalesce(count(*) > b.most, false) as capped,
              count(*) filter (where d.event_domain is null) as others,
              count(*) filter (where d.event_domain is not null
                                 and (u.who is not null or d.refusing is not null
                                      or (o.event_seq, o.id) >= (d.young_seq, d.young_id)
                                      or not public.fn_iu_retention_releasable(o.id))) as held,
              string_agg(distinct coalesce(d.refusing, u.who), ', ') as who
         from (select e.event_domain, e.event_seq, e.id, e.xact_id
                 from public.event_outbox e
                where p.early and e.created_at >= p."from" and e.created_at < p."to"
                limit b.most + 1) o
         left join domain d on d.event_domain = o.event_domain
         left join lateral (
              select string_agg(c.worker_name, ', ' order by c.worker_name) as who
                from unnest(d.cursors) c
               where not public.fn_iu_outbox_consumed(c, o.xact_id, o.event_seq, o.id)) u on true) f
    on p.early
 order by p."from", name
