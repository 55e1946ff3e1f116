-- Closes a gate, for this transaction only.
--
-- $1 text  key

update public.dot_config set value = 'false', updated_at = now() where key = $1
