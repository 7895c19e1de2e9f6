"""Files of our own: how data sets and runs write, sync and lock them. Reading, moving and deleting follow."""
