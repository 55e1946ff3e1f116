"""For producers: writes events in the transaction of the application, and passes its trace context to them."""
