-- How many events a domain has.
--
-- $1 text  domain

select count(*) from public.event_outbox o where o.event_domain = $1
