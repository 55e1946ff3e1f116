"""What happens, in order: a wake, a batch, a pause. anyio only; it knows no database, no tracer, no signal."""
