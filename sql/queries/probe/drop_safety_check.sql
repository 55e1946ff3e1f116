-- Drops the safety check, so that an enabled route that is not a dry run becomes possible inside this transaction.

alter table public.iu_outbound_route drop constraint if exists iu_outbound_route_safe_chk
