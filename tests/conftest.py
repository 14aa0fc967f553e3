"""What all tests have in common: an example that hypothesis finds slow is one of a busy machine, and no failure."""

from hypothesis import HealthCheck, settings

settings.register_profile("zcluster", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("zcluster")
