"""One short script per stage; run as `python -m stages.NAME`, which imports this first."""

import os

# Before NumPy and torch start their threads, and for workers too: results must not depend on the machine's cores.
# torch gets compute.threads afterwards, by `oclam.training.best_device`.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
