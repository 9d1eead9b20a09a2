"""Object-centric models: slots and masks of every frame."""
