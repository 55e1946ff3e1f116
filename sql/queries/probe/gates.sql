-- Both gates, as the functions answer them.

select public.fn_iu_core_routes_enabled() as master, public.fn_iu_route_worker_enabled() as worker
