-- Nothing to roll back: 070 only reads.
--
-- kind: command
-- loses: nothing

select 'verification changes nothing' as note;
