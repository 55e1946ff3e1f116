-- Look whether the next page of events has its attempts.
--
-- $1 text    worker
-- $2 int     how many events at most
-- $3 bigint  which pass: null is the one that is running, else a new one; 0 is a new one

select public.fn_iu_audit_page($1, $2, $3)::text
