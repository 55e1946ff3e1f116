-- Disables the worker: closes its gate. The running batch ends, and no further batch begins.
--
-- kind: command (iu-listen gate close worker); not recorded, repeatable
-- locks: one row of dot_config

update public.dot_config
   set value = 'false', updated_at = now()
 where key = 'iu_core.route_worker_enabled';
