"""Trained models for the Hugging Face hub, and datasets for LeRobot."""
