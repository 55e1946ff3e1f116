-- Nothing to roll back: opening a gate is an operator's decision (iu-listen gate open worker), never part of a
-- rollback.
--
-- kind: command
-- loses: nothing

select 'the worker gate stays as it is' as note;
