"""The commands that describe folders, presets and recipes, and change nothing: `ucgm info`, `presets`, `recipes`."""
