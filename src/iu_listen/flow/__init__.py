"""The control flow of a consumer. It uses anyio, and no database driver, no tracing library and no signals."""
