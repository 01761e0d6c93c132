"""Training with UCGM-T."""
