-- The event of a dead letter.
--
-- $1 uuid  id of the dead letter

select d.event_ref from public.iu_route_dead_letter d where d.id = $1
