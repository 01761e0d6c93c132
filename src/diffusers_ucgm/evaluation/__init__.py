"""Pictures and measures of models."""
