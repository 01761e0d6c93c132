"""The options of `ucgm serve`."""

import argparse

from diffusers_ucgm.generation.options import add_call_option, add_device, add_dtype, add_lora_options

from .defaults import HOST, PORT


__all__ = ["OPTIONS"]


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm serve`."""
    parser.add_argument(
        "--model", default="emoji", help="bundled name, folder or Hub repository of any pipeline (%(default)s)"
    )
    add_lora_options(parser)
    add_device(parser)
    add_dtype(parser)
    add_call_option(parser)
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host",
        default=HOST,
        metavar="ADDRESS",
        help="address to listen on; 0.0.0.0 opens the page to the network, and then it loads no folders (%(default)s)",
    )
    server.add_argument("--port", type=int, default=PORT, metavar="N", help="port of the page (%(default)s)")


OPTIONS = {"serve": add_serve_options}
