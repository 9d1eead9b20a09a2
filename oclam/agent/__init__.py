"""The agent's slots: which they are, their masks by pixels, and registered frames."""
