"""LAOM (arXiv 2502.00379): its model, augmentations and training."""
