-- No route is on the list of those that may deliver, for this transaction only.

update public.dot_config set value = '' where key = 'iu_core.delivery_live_routes'
