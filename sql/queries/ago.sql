-- When an interval ago was; never outside what Python can count.
--
-- $1 text  interval

select greatest('0001-01-03', least((now() at time zone 'UTC' - $1::text::interval) at time zone 'UTC', now()))
