"""The access to PostgreSQL: the only package that uses the database driver. It translates the errors of the driver."""
