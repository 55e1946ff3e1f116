"""A shop whose orders are events."""
