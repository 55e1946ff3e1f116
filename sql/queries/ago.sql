-- The time that lies an interval in the past, limited to the range of Python's datetime.
--
-- $1 text  interval

select greatest('0001-01-03', least((now() at time zone 'UTC' - $1::text::interval) at time zone 'UTC', now()))
