"""For all tests, and for the processes that they start."""

import os

# One thread: on a small machine, several test processes with PyTorch's own threads wait for each other's barriers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
