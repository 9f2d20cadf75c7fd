"""The companion's speed beside the library that a reader would otherwise call: ``python -m
benchmarks``.
"""

import os

# read when torch is imported; a busy neighbour costs less with it
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
