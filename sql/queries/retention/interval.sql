-- An interval as PostgreSQL reads it: its normal form, whether it is longer than nothing, and since when something is
-- older than that. Raises when it is no interval, or when that time lies beyond the calendar.
--
-- $1 text  interval

select i.keep::text as keep, i.keep > '0' as positive, (now() at time zone 'UTC' - i.keep) at time zone 'UTC' as cutoff
  from (select $1::text::interval as keep) i
