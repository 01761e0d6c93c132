"""Images, captions and latents: what training and evaluation read."""
