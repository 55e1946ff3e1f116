-- Event types that may be emitted for units.

select r.event_type from public.event_type_registry r where r.event_domain = 'iu' and r.active order by r.event_type
