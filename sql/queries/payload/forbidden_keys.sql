-- The keys that no payload may have, as a text with commas; null: any keys are possible.

select d.value from public.dot_config d where d.key = 'iu_listen.forbidden_payload_keys'
