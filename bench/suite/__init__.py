"""The benchmark suite: iu-listen beside its peers and beside a lower bound, in interleaved rounds.

`systems.py` is the table of systems, with one worker of each in workers/. `measurements/` has one module for each
measurement, and a table of them. `runner.py` runs the rounds, and `report/` writes the results.
"""
