"""A page in the browser: two solvers side by side from the same noise, and their quality against network calls."""
