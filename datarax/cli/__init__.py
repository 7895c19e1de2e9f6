"""The `datarax` command, one file per subcommand. Start at `main.py`."""
