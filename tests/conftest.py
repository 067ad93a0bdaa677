"""For all tests, and for the processes that they start."""

import os

# One thread: on a small machine, several test processes with PyTorch's own threads wait for each other's barriers.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The width of what commands print is looked up once, when a test first imports them, whichever that is.
os.environ["COLUMNS"] = "120"
