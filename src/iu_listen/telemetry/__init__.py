"""How it is seen: observations become log lines, spans and notes to the service manager.

Readers only; never in the way.
"""
