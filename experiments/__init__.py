"""One module for each result of a paper that the course reproduces; see moe_lite/course/ledger.py.

A module names one ``EXPERIMENT``: what the paper claims, the rule by which it is judged, and how
to run it. ``results/`` keeps what the runs gave.
"""
