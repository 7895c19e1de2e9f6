"""Machines under load are slow now and then: no example fails for the time it took."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
