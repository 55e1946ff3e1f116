-- Nothing to take back: opening a gate is a decision (iu-listen gate open worker), never a rollback.
--
-- kind: command
-- loses: nothing

select 'the worker gate stays as it is' as note;
