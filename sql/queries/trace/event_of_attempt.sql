-- The event of an attempt.
--
-- $1 bigint  id of the attempt

select a.event_ref from public.iu_route_attempt a where a.id = $1
