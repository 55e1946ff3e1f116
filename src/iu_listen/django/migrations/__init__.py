"""The migrations of the app: one for each schema version of the SQL package since the first release of the app."""
