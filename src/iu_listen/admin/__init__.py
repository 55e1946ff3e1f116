"""What operators do: gates, routes, events, dead letters, retention, and the diagnosis of a worker."""
