"""What commands answer about a run: `history.py` (what it recorded, what a config makes of it) and `rows.py` (who saw what)."""
