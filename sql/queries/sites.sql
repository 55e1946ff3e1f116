-- The sites from which consumers reach this database, and the times since which they may deliver.

select s.site, s.seen_at, s.accepted_at, s.accepted_by,
       s.seen_at > clock_timestamp() - interval '1 minute' as recent
  from public.iu_outbox_site s
 order by s.accepted_at nulls first, s.site
