"""Expert policies: the file, batched environments and training."""
