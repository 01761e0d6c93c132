"""The options of `ucgm convert`."""

import argparse

from diffusers_ucgm.names import DTYPE_NAMES
from diffusers_ucgm.presets import PRESETS
from diffusers_ucgm.run_folder import add_overwriting


__all__ = ["NETWORK_OPTIONS", "OPTIONS"]

NETWORK_OPTIONS = {
    "sample_size": "side of the latents, for a DDT of no published size, or of 512 pixels without a preset",
    "patch_size": "side of a patch, for a DDT of no published size",
    "num_encoder_layers": "blocks of the encoder, for a DDT of no published size",
    "num_attention_heads": "heads of a block, for a SiT of no published width",
    "attention_head_dim": "channels of a head, for an EDM2 of no published width",
}


def add_convert_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm convert`."""
    published = [name for name, preset in PRESETS.items() if preset.network is not None]
    parser.add_argument("--checkpoint", help="the network's file, or owner/repository/path/file.pt of the Hub")
    parser.add_argument("--output", help="the folder to write")
    add_overwriting(parser)
    parser.add_argument("--preset", choices=published, metavar="NAME", help="the published model, see `ucgm presets`")
    parser.add_argument("--reference-config", help="the reference's YAML file, in place of a preset")
    parser.add_argument(
        "--vae",
        help="the autoencoder: original file, folder, or Hub repository; without one the pipeline generates latents",
    )
    parser.add_argument("--latent-statistics", help="file with mean and std of the latents")
    parser.add_argument("--norm-num-groups", type=int, help="groups of a VA-VAE's group norms, if not 32")
    parser.add_argument("--weights", choices=("ema", "model"), help="weights of a training checkpoint; ema by default")
    parser.add_argument("--torch-dtype", choices=DTYPE_NAMES, help="dtype of the written weights")
    parser.add_argument("--id2label", help="JSON file with the name of each class: a list, a mapping or a config.json")
    for name, text in NETWORK_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=text)
    parser.add_argument("--dry-run", action="store_true", help="print what goes where, write nothing")
    parser.add_argument("--push-to-hub", metavar="REPOSITORY", help="owner/name to which the result is uploaded")


OPTIONS = {"convert": add_convert_options}
