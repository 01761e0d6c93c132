"""Published checkpoints of the paper into diffusers' form."""
