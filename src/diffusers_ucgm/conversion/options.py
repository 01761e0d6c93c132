"""The options of `ucgm convert`; what it does is in `commands.py`, which is imported when it runs."""

import argparse

from diffusers_ucgm.names import DTYPE_NAMES
from diffusers_ucgm.presets import PRESETS
from diffusers_ucgm.run_folder import add_overwriting


__all__ = ["NETWORK_OPTIONS", "OPTIONS"]

NETWORK_OPTIONS = {
    "sample_size": "side of the latents, for a DDT of no published size, or of 512 pixels without a preset",
    "patch_size": "for a DDT of no published size",
    "num_encoder_layers": "for a DDT of no published size",
    "num_attention_heads": "for a SiT of no published width",
    "attention_head_dim": "for an EDM2 of no published width",
}


def add_convert_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ucgm convert`."""
    published = [name for name, preset in PRESETS.items() if preset.network is not None]
    parser.add_argument("--checkpoint", help="the network's file, or owner/repository/path/file.pt of the Hub")
    parser.add_argument("--output", help="the folder to write")
    add_overwriting(parser)
    parser.add_argument("--preset", choices=published, metavar="NAME", help="whose model it is, see `ucgm presets`")
    parser.add_argument("--reference-config", help="the reference's YAML file, in place of a preset")
    parser.add_argument(
        "--vae",
        help="the autoencoder: original file, folder, or Hub repository; without one the pipeline generates latents",
    )
    parser.add_argument("--latent-statistics", help="file with mean and std of the latents")
    parser.add_argument("--norm-num-groups", type=int, help="of a VA-VAE's group norms, if not 32")
    parser.add_argument("--weights", choices=("ema", "model"), help="of a training checkpoint; ema where there is one")
    parser.add_argument("--torch-dtype", choices=DTYPE_NAMES, help="of the weights that are written")
    parser.add_argument("--id2label", help="JSON file with the name of each class: a list, a mapping or a config.json")
    for name, text in NETWORK_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=text)
    parser.add_argument("--dry-run", action="store_true", help="print what goes where, write nothing")
    parser.add_argument("--push-to-hub", metavar="REPOSITORY", help="where the converted pipeline is pushed to")


OPTIONS = {"convert": add_convert_options}
