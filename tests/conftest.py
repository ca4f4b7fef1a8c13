"""Settings and helpers for all tests."""

import platform

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

#: Everything that kernels are written for; no machine has all of it.
LEVELS = ("portable", "neon", "avx2", "avxvnni", "avx512", "avx512vnni")


def pytest_report_header(config):
    """Say at which instruction sets the kernels are tested, and at which they are not."""
    from compressrs import _core

    supported = _core.simd_levels()
    missing = [level for level in LEVELS if level not in supported]
    return [
        f"compressrs: kernels are tested at {', '.join(supported)} ({platform.machine()})",
        f"compressrs: NOT TESTED on this machine: {', '.join(missing)}",
    ]
