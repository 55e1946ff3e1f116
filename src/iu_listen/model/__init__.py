"""What things are: facts, settings, observations, errors.

Standard library only; nothing here waits or reads a clock.
"""
