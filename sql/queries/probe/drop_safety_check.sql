-- Only so that an enabled route that is no dry run becomes possible, inside this transaction.

alter table public.iu_outbound_route drop constraint if exists iu_outbound_route_safe_chk
