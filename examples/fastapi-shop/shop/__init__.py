"""A shop: an API that takes orders, and the handlers of their events."""
