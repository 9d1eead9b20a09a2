"""Returns of policies in the environment."""
