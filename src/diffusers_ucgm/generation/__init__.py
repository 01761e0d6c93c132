"""Images from a pipeline, and grids of them."""
