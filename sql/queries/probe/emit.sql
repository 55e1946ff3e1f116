-- Emits one synthetic event through the governed emitter.
--
-- $1 int  its number

select public.fn_iu_emit_event('version_applied', 'probe/' || $1::int, gen_random_uuid(), 'iu-listen probe',
                               jsonb_build_object('probe', $1::int))
