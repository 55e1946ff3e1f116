"""Puts the package into a database: preflight checks, migrations, probe, verification, rollback."""
