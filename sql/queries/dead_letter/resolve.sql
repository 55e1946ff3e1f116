-- Resolve dead letters without a replay.
--
-- $1 uuid[]  which ones      $2 text  why      $3 text  who asks; null: the database user

select public.fn_iu_dead_letters_resolve($1, $2, coalesce($3, session_user))
