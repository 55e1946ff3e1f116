-- The current time, by the clock that dates dead letters.

select clock_timestamp()
