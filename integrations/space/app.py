"""The web demo of diffusers-ucgm as a Hugging Face Space: `ucgm serve`, open to the visitors."""

import sys

from diffusers_ucgm.cli import main


sys.exit(main(["serve", "--host", "0.0.0.0"]))
