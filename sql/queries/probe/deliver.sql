-- Knock at the delivery seam. It must raise.

select public.fn_iu_route_deliver('iu.version_applied.workflow', gen_random_uuid(), '{}')
