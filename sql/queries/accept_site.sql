-- Accepts a site, so that its consumers may deliver. Answers the site; no row: there is no such site.
--
-- $1 text  site; null: the one that was refused last
-- $2 text  person who accepts it; null: the database role

update public.iu_outbox_site s
   set accepted_at = clock_timestamp(), accepted_by = coalesce($2, session_user)
 where s.site = coalesce($1, (select x.site from public.iu_outbox_site x
                               where x.accepted_at is null order by x.seen_at desc limit 1))
returning s.site
