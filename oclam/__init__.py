"""Object-centric latent action learning."""

import os

# Before torch starts its threads: they sleep while they wait. Spinning, as is the default, they starve the thread that
# makes the next batch; on two cores that slowed a small model's training forty times.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
