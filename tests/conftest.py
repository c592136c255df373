"""What holds for every test: arrays of different rank never meet without being told to."""

import os

# Before JAX is imported, and inherited by the processes that tests start.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
