"""Tasks and transforms that the shipped configs name; each is meant to be read and copied."""
