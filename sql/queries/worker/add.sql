-- Registers a worker for a domain. It begins with the first event of the domain. No row: the name is taken.
--
-- $1 text  worker     $2 text  domain

insert into public.iu_route_worker_cursor (worker_name, event_domain, lineage)
select $1, $2, a.lineage from public.iu_outbox_anchor a
on conflict (worker_name) do nothing
returning worker_name
