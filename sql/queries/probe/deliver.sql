-- Calls the delivery seam, which must raise.

select public.fn_iu_route_deliver('iu.version_applied.workflow', gen_random_uuid(), '{}')
