"""Generated images against real ones: features, statistics and metrics."""
