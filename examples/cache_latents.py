"""Encode pictures once, read them back, and look at what the autoencoder keeps of them.

    python examples/cache_latents.py --source photos --size 32 --output runs/cache

`--source` is a folder with a folder of images for each class. From a shell `ucgm cache` does the same, and takes
captions too; what it writes is the `--data` of `ucgm train`. A stopped run goes on where it was. Crops and mirrors are
drawn here, once: training sees the same pictures in every epoch.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.data.images import ImageItems, load_image_dataset
from diffusers_ucgm.data.latent_cache import CachedLatents, cache_latents, finish_cache
from diffusers_ucgm.pipeline import denormalize_latents
from diffusers_ucgm.training.encoding import encode_pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder of images, of .tar shards, or data set of the Hub")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pipeline", default="fashion-mnist", help="bundled name, folder or repository of the Hub")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    args = parser.parse_args()
    pipe = UCGMPipeline.from_pretrained(args.pipeline).to("cuda" if torch.cuda.is_available() else "cpu")
    cache_latents(
        ImageItems(load_image_dataset(args.source), args.size, flip=True, channels=pipe.vae.config.in_channels),
        lambda pixels, generator: encode_pixels(pipe, pixels, generator),
        args.output,
        # What the latents depend on: a folder holds one kind only.
        fingerprint={"pipeline": args.pipeline, "source": args.source, "size": args.size},
    )
    index = finish_cache(args.output)
    print(f"{index['num_samples']} pictures, {len(index['skipped'])} left out")
    print(f"mean {index['latents_mean']}\ndeviation {index['latents_std']}")  # near 0 and 1, as networks want them
    data = CachedLatents(args.output)
    first = torch.stack([data[i]["latents"] for i in range(min(8, len(data)))]).to(pipe.device)
    with torch.no_grad():
        decoded = pipe.vae.decode(denormalize_latents(pipe.vae, first)).sample
    pictures = ((decoded.clamp(-1, 1) + 1) * 127.5).byte().cpu().expand(-1, 3, -1, -1)
    row = torch.cat(list(pictures), 2).permute(1, 2, 0).contiguous()
    Image.fromarray(row.numpy()).save(args.output / "decoded.png")
    print(f"Picture: {args.output / 'decoded.png'}")


if __name__ == "__main__":
    main()
