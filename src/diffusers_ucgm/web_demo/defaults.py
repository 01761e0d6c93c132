"""Defaults that the command line shows in its help, in a module that imports nothing."""

__all__ = ["HOST", "PORT"]

# Of this machine alone.
HOST = "127.0.0.1"
# Gradio's own, which Hugging Face Spaces expect.
PORT = 7860
