"""The command `ucgm serve`."""

import argparse
import threading

from diffusers_ucgm.generation.inputs import check_lora_scale, further_arguments
from diffusers_ucgm.loading import DTYPES

from .server import open_page


__all__ = ["COMMANDS"]


def serve(args: argparse.Namespace) -> int:
    """Serve the page until it is stopped."""
    check_lora_scale(args)
    page = open_page(
        args.model,
        lora=args.lora,
        lora_scale=1.0 if args.lora_scale is None else args.lora_scale,
        dtype=DTYPES[args.torch_dtype],
        device=args.device,
        call=further_arguments(args, ("guidance_scale", "num_inference_steps")),
        host=args.host,
        port=args.port,
    )
    try:
        with page as url:
            print(f"Page: {url} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        # The way in which a server ends: no command was stopped before its end.
        print("The page has closed.")
    return 0


COMMANDS = {"serve": serve}
