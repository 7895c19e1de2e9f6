"""What commands answer about a run. Nothing is written but what is asked for, no lock is taken, no peers are needed.

`history.py`: what it recorded, and what a config makes of it. `rows.py`: which records were in which steps.
`verify.py`: whether a replay in a fresh process gives what was recorded. `diff.py`: whether two are the same.
`facts.py`: what a config will do, and what is in a snapshot.
"""
