-- The number of events of a domain.
--
-- $1 text  domain

select count(*) from public.event_outbox o where o.event_domain = $1
