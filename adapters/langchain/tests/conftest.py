"""For all tests: no network, one thread."""

import os

import no_network  # noqa: F401

os.environ.setdefault("OMP_NUM_THREADS", "1")
