-- How full the NOTIFY queue of the cluster is, 0 to 1.

select pg_notification_queue_usage()
