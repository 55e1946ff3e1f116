-- Events by a prefix of their id, as a range of the primary key; six are enough to show that the prefix is
-- ambiguous.
--
-- $1 uuid  lowest id      $2 uuid  highest id

select o.id
  from public.event_outbox o
 where o.id between $1 and $2
 order by o.id
 limit 6
