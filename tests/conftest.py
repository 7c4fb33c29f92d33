"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# Time is never asserted: a busy machine must not fail a property.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")
