"""The command `ucgm export`: models and schedules for use without this package."""
