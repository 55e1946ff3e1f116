-- The probe's open dead letters, from the view.
--
-- $1 uuid[]  events

select v.id from public.v_iu_route_dead_letter_open v where v.event_ref = any ($1) order by v.created_at, v.id
