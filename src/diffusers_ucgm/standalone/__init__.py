"""Folders that diffusers loads without this package: modules that hold our classes with all that these use."""
