-- Every gate, its value, and the time since which it has this value.

select d.key, d.value, d.updated_at from public.dot_config d where d.key like 'iu\_core.%' order by d.key
