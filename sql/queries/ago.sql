-- When an interval ago was; never outside what Python can count.
--
-- $1 text  interval

select greatest('0001-01-03', least(now() - $1::text::interval, now()))
