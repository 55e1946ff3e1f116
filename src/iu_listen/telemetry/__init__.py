"""Observers: they turn observations into log lines, metrics, live spans and notifications of the service manager.

They only read, and never delay the work of the consumer.
"""
