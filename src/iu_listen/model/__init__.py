"""The data types: facts, settings, deliveries, observations, errors.

It uses only the standard library, and it neither waits nor reads a clock.
"""
