-- Empties the list of live routes, for this transaction only.

update public.dot_config set value = '' where key = 'iu_core.delivery_live_routes'
