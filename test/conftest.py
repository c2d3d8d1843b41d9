"""Makes the checkout and the test helpers importable, and keeps the numeric libraries to one thread."""

import os
import sys
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

TESTS = Path(__file__).resolve().parent
for folder in (TESTS.parent, TESTS / "core"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
