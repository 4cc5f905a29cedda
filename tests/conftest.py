"""The gate gives the same answer twice: examples are drawn from the tests, not from chance.

`HYPOTHESIS_PROFILE=search pytest` looks for new ones.
"""

import os

from hypothesis import settings

settings.register_profile("gate", derandomize=True)
settings.register_profile("search")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))
