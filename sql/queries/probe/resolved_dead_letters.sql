-- The number of the probe's resolved dead letters.
--
-- $1 uuid[]  events

select count(*) from public.iu_route_dead_letter d where d.event_ref = any ($1) and d.resolved_at is not null
