"""What all tests have in common.

An example that hypothesis finds slow is one of a busy machine, and no failure. And a suite that is to say whether a
change is good must not draw other examples each time: chance belongs into a search (SEARCH_EXAMPLES=1), whose finds
become tests.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "zcluster",
    settings.default,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("SEARCH_EXAMPLES"),
)
settings.load_profile("zcluster")
