-- Resolves dead letters without a replay.
--
-- $1 uuid[]  ids      $2 text  reason      $3 text  actor; null: the database role

select public.fn_iu_dead_letters_resolve($1, $2, coalesce($3, session_user))
