-- Sets the number of attempts of the live routes, so that a test sees a dead letter without waiting for retries.
--
-- $1 int  attempts

update public.iu_outbound_route r set delivery_policy = r.delivery_policy || jsonb_build_object('attempts', $1::int)
 where not r.dry_run
