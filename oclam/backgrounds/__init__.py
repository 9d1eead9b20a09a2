"""Background videos: generated, from DAVIS 2017 or from a folder, and their store."""
