-- Opens or closes an existing gate. The update rings the bell.
--
-- $1 text  key     $2 text  true or false

update public.dot_config d
   set value = $2, updated_at = case when d.value is distinct from $2 then clock_timestamp() else d.updated_at end
 where d.key = $1
returning d.value, d.updated_at
