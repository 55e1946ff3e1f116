-- Replay the next dead letters of a route.
--
-- $1 text         route
-- $2 text         failure code, or null
-- $3 timestamptz  created since then, or null
-- $4 uuid         event, or null
-- $5 text         subject, or null
-- $6 text         who asks; null: the database user
-- $7 text         why, or null
-- $8 timestamptz  created until then
-- $9 timestamptz  after this one: when it was created, or null
-- $10 uuid        and its id
-- $11 int         how many at most

select public.fn_iu_dead_letters_replay(
           $1, $2, $3, $4, $5, coalesce($6, session_user) || coalesce(' (' || $7 || ')', ''), $8, $9, $10, $11)::text
