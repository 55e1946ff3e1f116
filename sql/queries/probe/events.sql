-- The number of the probe's events in the outbox.
--
-- $1 uuid[]  their ids

select count(*) from public.event_outbox o where o.id = any ($1)
