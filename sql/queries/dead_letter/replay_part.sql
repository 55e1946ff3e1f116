-- Replays the next dead letters of a route.
--
-- $1 text         route
-- $2 text         failure code, or null
-- $3 timestamptz  created since then, or null
-- $4 uuid         event, or null
-- $5 text         subject, or null
-- $6 text         actor; null: the database role
-- $7 text         reason, or null
-- $8 timestamptz  created until then
-- $9 timestamptz  created_at of the last dead letter of the previous part, or null
-- $10 uuid        id of the last dead letter of the previous part, or null
-- $11 int         maximum number

select public.fn_iu_dead_letters_replay(
           $1, $2, $3, $4, $5, coalesce($6, session_user) || coalesce(' (' || $7 || ')', ''), $8, $9, $10, $11)::text
