-- Decides a dead letter again.
--
-- $1 uuid  dead letter      $2 text  actor      $3 text  reason, or null

select public.fn_iu_route_dead_letter_replay($1, coalesce($2, session_user) || coalesce(' (' || $3 || ')', ''))::text
