-- Somebody mends it.

drop trigger demo_breakage on public.iu_route_attempt;
drop function public.fn_demo_breakage();
