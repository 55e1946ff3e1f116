-- An interval as PostgreSQL reads it: its normal form, whether it is positive, and the time that lies this interval in
-- the past. Raises if the text is not an interval, or if that time is out of range.
--
-- $1 text  interval

select i.keep::text as keep, i.keep > '0' as positive, (now() at time zone 'UTC' - i.keep) at time zone 'UTC' as cutoff
  from (select $1::text::interval as keep) i
