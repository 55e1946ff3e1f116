-- A point in time; never outside what Python can count.
--
-- $1 text  point in time

select greatest('0001-01-03', least($1::text::timestamptz, now()))
