-- The partitions of the outbox, and whether each may be removed as a whole. That is allowed if it ends before the
-- retention begins and every event in it may be deleted: its domain has a cursor, all workers have read it, and it is
-- old enough. Only partitions that end early enough are read, through the outbox with the bounds of the partition.
--
-- $1 text  interval     $2 oid  one partition; null: all

select p.part::oid as oid, regexp_replace(p.part::text, '^public\.', '') as name, p."from", p."to", p.is_default, p.pending, p.closed,
       coalesce(f.rows, 0) as rows, coalesce(f.others, 0) as others, coalesce(f.held, 0) as held, f.who,
       p.is_table and not p.is_default and not p.pending and f.rows is not null and f.others = 0 and f.held = 0
       and exists (select from public.fn_iu_retention_domains())
       and not exists (select from public.fn_iu_retention_domains() d where d.refusing is not null) as whole
  from (select (now() at time zone 'UTC' - $1::text::interval) at time zone 'UTC' as cutoff) t
 cross join public.fn_iu_outbox_partitions() p
  left join lateral (
       select count(*) as rows, count(*) filter (where d.event_domain is null) as others,
              count(*) filter (where d.event_domain is not null
                                 and (u.who is not null or d.refusing is not null
                                      or (o.event_seq, o.id) >= (d.young_seq, d.young_id)
                                      or not public.fn_iu_retention_releasable(o.id))) as held,
              string_agg(distinct coalesce(d.refusing, u.who), ', ') as who
         from public.event_outbox o
         left join public.fn_iu_retention_domains(t.cutoff) d on d.event_domain = o.event_domain
         left join lateral (
              select string_agg(c.worker_name, ', ' order by c.worker_name) as who
                from unnest(d.cursors) c
               where not public.fn_iu_outbox_consumed(c, o.xact_id, o.event_seq, o.id)) u on true
        where o.created_at >= p."from" and o.created_at < p."to") f
    on p."to" <= t.cutoff and not p.is_default and not p.pending
 where p.part::oid = $2 or $2 is null
 order by p."from", name
