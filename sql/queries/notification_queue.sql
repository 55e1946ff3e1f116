-- The fill level of the NOTIFY queue of the cluster, from 0 to 1.

select pg_notification_queue_usage()
