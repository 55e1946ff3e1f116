-- Checks whether the next page of events has its attempts.
--
-- $1 text    worker
-- $2 int     maximum number of events
-- $3 bigint  pass: null is the running one, otherwise a new one; 0 is a new one

select public.fn_iu_completeness_page($1, $2, $3)::text
