"""Object-centric latent action learning."""
