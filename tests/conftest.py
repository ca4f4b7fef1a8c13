"""Settings and helpers for all tests."""

import hypothesis

# CI machines are shared: no deadline, and the same examples in every run.
hypothesis.settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci")
