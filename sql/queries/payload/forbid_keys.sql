-- Sets the keys that no payload may have.
--
-- $1 text  the keys, with commas; null: any keys are possible

insert into public.dot_config as d (key, value, description)
values ('iu_listen.forbidden_payload_keys', $1, 'Keys that no payload may have, with commas.')
on conflict (key) do update set value = excluded.value, updated_at = clock_timestamp()
returning d.value
