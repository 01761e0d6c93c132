"""Networks that diffusers lacks, in its form; their files' names are part of saved pipelines."""
