"""Files of our own: runs and data sets are written, synced and locked through here, and nowhere else."""
