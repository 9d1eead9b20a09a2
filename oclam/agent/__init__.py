"""The agent in the image: which slots show it, its mask in pixels, registered frames. Acting is `oclam.policies`'."""
