"""What holds for every test: arrays of different rank never meet without being told to, and Ctrl-C
is heard.
"""

import os
import signal

# Before JAX is imported, and inherited by the processes that tests start.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# In the background of a script SIGINT is ignored, also by the processes that are started there.
signal.signal(signal.SIGINT, signal.default_int_handler)
