"""Train a small text-to-image model in colour: emoji of 64x64 pixels, in diffusers' own `ZImagePipeline`.

    python examples/train_emoji.py prepare --output runs/emoji
    python examples/train_emoji.py autoencoder --output runs/emoji
    python examples/train_emoji.py text --output runs/emoji
    python examples/train_emoji.py network --output runs/emoji
    python examples/train_emoji.py pipeline --output runs/emoji

`start` in place of `autoencoder` and `text` takes the parts of a pipeline, such as the bundled one, and `network` then
trains its transformer further.

`prepare` fetches 7,161 emoji from npm, or takes any source with captions (`--source`). `autoencoder` trains an
AutoencoderKL (16x16x4 latents), `text` a CLIP of captions and pictures, whose text tower becomes the text encoder,
and `network` the transformer by `UCGMTrainer`, on cached latents and captions. `pipeline` assembles them in half
precision, with model card and licences, and draws a grid. A finished stage is left alone, and a stopped one goes on
where it was. docs/emoji-model.md says why the parts are what they are, and how long a step takes.
"""

import argparse
import json
import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from emoji_images import SIZE, prepare, write_prompts
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, PreTrainedTokenizerFast

from diffusers_ucgm import UCGMTrainer, UCGMTrainingConfig
from diffusers_ucgm.data.images import ImageItems, load_image_dataset
from diffusers_ucgm.data.latent_cache import CachedLatents, cache_latents, finish_cache
from diffusers_ucgm.files import read_json, replacing_folder, write_image, write_text
from diffusers_ucgm.fingerprint import digest_of, network_fingerprint
from diffusers_ucgm.generation.image_grid import image_grid
from diffusers_ucgm.generation.prompts import read_prompts
from diffusers_ucgm.image_metrics.prompt_scores import score_real_images
from diffusers_ucgm.image_metrics.text_image_model import TextImageModel
from diffusers_ucgm.loading import load_pipeline
from diffusers_ucgm.locks import Lock
from diffusers_ucgm.training.adapters import adapter_for_pipeline
from diffusers_ucgm.training.checkpoints import (
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_state,
    optimizer_state,
    prune_checkpoints,
    save_checkpoint,
)
from diffusers_ucgm.training.encoding import encode_null, encode_pixels, encode_prompts


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KL_WEIGHT = 1e-4
# Z-Image pads every text to a multiple of this length inside its network, so that shorter ones cost the same.
TEXT_TOKENS = 32
# The stock pipeline pads every prompt to this length before it encodes it.
MAX_TEXT_TOKENS = 512
HEAD_WIDTH = 32
MAX_MEGABYTES = 14.0
# The folder of a transformer that is trained further.
START = "start"
PROMPTS = (
    "red apple, fluent style",
    "woman surfing, dark skin tone, noto style",
    "flag of Ghana",
    "cat face, noto style",
)


def pictures(folder: Path, split: str = "train") -> tuple[Tensor, list[dict[str, object]]]:
    """The pictures of a split as bytes, shape `(N, 3, 64, 64)`, and their lines of `metadata.jsonl`."""
    file = folder / split / "metadata.jsonl"
    if not file.is_file():
        raise SystemExit(f"{file} is missing. Run the stage `prepare` first.")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    images = torch.empty(len(rows), 3, SIZE, SIZE, dtype=torch.uint8)
    for image, row in zip(images, rows, strict=True):
        with Image.open(folder / split / row["file_name"]) as picture:
            image.copy_(
                torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3).movedim(2, 0)
            )
    return images, rows


def to_float(images: Tensor) -> Tensor:
    """Pixels in [-1, 1] on the device."""
    return images.to(DEVICE).float() / 127.5 - 1.0


def to_pictures(x: Tensor) -> list[Image.Image]:
    """PIL's form of pixels in [-1, 1]."""
    array = ((x.float().clamp(-1, 1) + 1.0) * 127.5).round().byte().cpu().movedim(1, 3).numpy()
    return [Image.fromarray(each) for each in array]


def needs(folder: Path, stage: str) -> Path:
    """The folder that a stage writes.

    Raises:
        SystemExit: If that stage has not been run.
    """
    if not folder.is_dir():
        raise SystemExit(f"{folder} is missing. Run the stage `{stage}` first.")
    return folder


def indices(count: int, batch_size: int, step: int) -> Tensor:
    """The rows of a step; the order of a pass depends on its number alone, as a resumed run needs it."""
    batch_size = min(batch_size, count)
    epoch, position = divmod(step, count // batch_size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch))
    return order[position * batch_size : (position + 1) * batch_size]


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shape of each tensor by its name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def optimize(
    run: Path, model: nn.Module, loss_of: Callable[[int], Mapping[str, Tensor]], *, steps: int, learning_rate: float
) -> None:
    """Minimise the first value of `loss_of(step)` by AdamW, with checkpoints in `run`; go on where a run stopped.

    Raises:
        RuntimeError: If another process trains in the folder.
        SystemExit: If the run that stopped is of a model of other sizes.
    """
    run.mkdir(parents=True, exist_ok=True)
    with Lock(run / ".run.lock", "--output", run):
        _optimize(run, model, loss_of, steps, learning_rate)


def _optimize(
    run: Path, model: nn.Module, loss_of: Callable[[int], Mapping[str, Tensor]], steps: int, learning_rate: float
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    first = 0
    if checkpoint := latest_checkpoint(run):
        tensors, values = load_checkpoint(checkpoint)
        if shapes_of(tensors["model"]) != shapes_of(model.state_dict()):
            raise SystemExit(
                f"{checkpoint} is of a model of other sizes. Give the options of the stopped run, or delete {run}."
            )
        model.load_state_dict(tensors["model"])
        load_optimizer_state(optimizer, tensors["optimizer"], values["optimizer"])
        first = values["step"]
    started = time.time()
    for step in range(first, steps):
        warm = min(1.0, (step + 1) / max(1, min(100, steps // 10)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm * (0.52 + 0.48 * math.cos(math.pi * step / steps))
        with torch.autocast(DEVICE.type, torch.bfloat16):
            values = loss_of(step)
        next(iter(values.values())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        if done % 20 == 0 or done == steps:
            shown = " ".join(f"{name} {value.item():.4f}" for name, value in values.items())
            print(f"{done}/{steps} {shown}, {(time.time() - started) / (done - first):.2f} s a step", flush=True)
        if done % 100 == 0 and done < steps:
            tensors, others = optimizer_state(optimizer)
            save_checkpoint(run, done, {"model": model.state_dict(), "optimizer": tensors}, {"optimizer": others})
            prune_checkpoints(run, keep=1)


def new_autoencoder(channels: list[int]) -> AutoencoderKL:
    """An autoencoder from 64x64x3 to 16x16x4, without attention, so that latents depend on their surroundings."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def train_autoencoder(output: Path, args: argparse.Namespace) -> None:
    """Minimise absolute and squared error, and a small Kullback-Leibler term, which keeps the latents smooth."""
    images, _ = pictures(output / "data")
    torch.manual_seed(0)
    model = new_autoencoder(args.channels).to(DEVICE, memory_format=torch.channels_last)

    def loss_of(step: int) -> dict[str, Tensor]:
        # A quarter of a picture costs a quarter; whole pictures come last, for the statistics of group norms.
        side = SIZE // 2 if step < 0.8 * args.steps else SIZE
        draws = random.Random(step)
        left, top = draws.randrange(SIZE - side + 1), draws.randrange(SIZE - side + 1)
        x = images[indices(len(images), args.batch_size, step)][..., top : top + side, left : left + side]
        x = to_float(x).contiguous(memory_format=torch.channels_last)
        posterior = model.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step)).to(DEVICE)
        decoded = model.decode(posterior.mean + posterior.std * noise).sample.float()
        difference = decoded - x
        squared = difference.square().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).float().mean()
        return {"loss": difference.abs().mean() + squared + KL_WEIGHT * kl, "squared": squared, "kl": kl}

    optimize(output / "autoencoder-run", model, loss_of, steps=args.steps, learning_rate=args.learning_rate)
    model = model.eval().to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        z = torch.cat([model.encode(to_float(each)).latent_dist.mean for each in images[::4].split(64)])
    # The stock pipeline reads one number for each.
    model.register_to_config(scaling_factor=1.0 / z.std().item(), shift_factor=z.mean().item())
    print(f"latents: mean by channel {z.mean((0, 2, 3)).tolist()}, deviation {z.std((0, 2, 3)).tolist()}")
    with replacing_folder(output / "vae") as temporary:
        model.save_pretrained(temporary)


@torch.no_grad()
def show_reconstructions(output: Path) -> None:
    """Draw pictures of the test split and their reconstructions, and print the mean PSNR."""
    model = AutoencoderKL.from_pretrained(output / "vae").eval().to(DEVICE)
    split = "test" if (output / "data" / "test").is_dir() else "train"
    images, _ = pictures(output / "data", split)
    x = to_float(images[:: max(1, len(images) // 256)])
    y = torch.cat([model.decode(model.encode(each).latent_dist.mean).sample for each in x.split(64)])
    print(f"{split}: {-10 * ((y - x).square().mean((1, 2, 3)) / 4).log10().mean():.2f} dB")
    shown = slice(None, None, max(1, len(x) // 12))
    rows = {"": [to_pictures(x[shown]), to_pictures(y[shown])]}
    print(f"Picture: {write_image(output / 'reconstructions.png', image_grid(rows, ['original', 'decoded']))}")


def new_tokenizer(captions: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of lower-case text, whose tokens are learnt from the captions."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # Every word begins with its space, also the first one, so that it has the same token at any place.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "<begin>", "<unk>", "<end>"]
    tokenizer.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", 1), ("<end>", 3)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<begin>",
        unk_token="<unk>",
        eos_token="<end>",
        model_max_length=MAX_TEXT_TOKENS,
        padding_side="right",
    )
    # The stock pipeline wraps each prompt in the tokenizer's chat template, which is the bare prompt here.
    made.chat_template = "{{ messages[0]['content'] }}"
    return made


def new_towers(vocabulary: int, width: int, layers: int) -> CLIPModel:
    """A CLIP of captions and pictures with a width and a number of layers for both."""
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH,
        "projection_dim": width,
    }
    # These ids are the tokenizer's. The end must not be 2, which CLIP takes for an old checkpoint's.
    text = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    return CLIPModel(
        CLIPConfig(
            text_config={**tower, **text, "max_position_embeddings": MAX_TEXT_TOKENS},
            vision_config={**tower, "image_size": SIZE, "patch_size": 8},
            projection_dim=width,
            # PyTorch's fused attention is three times as slow in bfloat16 on a CPU.
            attn_implementation="eager" if DEVICE.type == "cpu" else "sdpa",
        )
    )


def tokens_of(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> dict[str, Tensor]:
    """Captions as the towers take them."""
    tokens = tokenizer(captions, padding=True, truncation=True, max_length=TEXT_TOKENS, return_tensors="pt")
    return {name: tokens[name].to(DEVICE) for name in ("input_ids", "attention_mask")}


def train_text(output: Path, args: argparse.Namespace) -> None:
    """Teach two towers which caption belongs to which picture; the tower of texts becomes the text encoder."""
    images, rows = pictures(output / "data")
    tokenizer = new_tokenizer((text for row in rows for text in row["text"]), args.vocabulary)
    # It is saved before its first call, because a tokenizer saves the lengths that it was last called with.
    with replacing_folder(output / "tokenizer") as temporary:
        tokenizer.save_pretrained(temporary)
    torch.manual_seed(0)
    model = new_towers(len(tokenizer), args.width, args.layers).to(DEVICE)

    def loss_of(step: int) -> dict[str, Tensor]:
        draws = random.Random(step)
        index = indices(len(images), args.batch_size, step)
        captions = [draws.choice(rows[i]["text"]) for i in index.tolist()]
        # The pictures are few, so they are moved by some pixels; some have letters, so none is mirrored.
        x = nn.functional.pad(to_float(images[index]), (4, 4, 4, 4), value=1.0)
        left, top = draws.randrange(9), draws.randrange(9)
        x = x[..., top : top + SIZE, left : left + SIZE]
        return {"loss": model(pixel_values=x, return_loss=True, **tokens_of(tokenizer, captions)).loss}

    optimize(output / "text-run", model, loss_of, steps=args.steps, learning_rate=args.learning_rate)
    with replacing_folder(output / "towers") as temporary:
        model.save_pretrained(temporary)


def complete_towers(output: Path) -> None:
    """Put tokenizer and image processor beside the towers, as `--text-image-model` and transformers expect them."""
    towers = output / "towers"
    PreTrainedTokenizerFast.from_pretrained(output / "tokenizer").save_pretrained(towers)
    name_tokenizer(towers / "tokenizer_config.json")
    half, size = [0.5] * 3, {"height": SIZE, "width": SIZE}
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=size, image_mean=half, image_std=half)
    processor.save_pretrained(towers)


def show_retrieval(output: Path) -> None:
    """Print how often the towers find a picture's caption among several, for each part of the test split."""
    split = "test" if (output / "data" / "test").is_dir() else "train"
    prompts = read_prompts(output / "data" / split / "metadata.jsonl")
    for scores in score_real_images(TextImageModel(str(output / "towers"), DEVICE), prompts):
        values = {**scores.left_out, **{name: f"{value:.3f}" for name, value in scores.metrics.items()}}
        print(f"{split}, {scores.kind or 'all'}, {scores.num_images} pictures:")
        for name, value in values.items():
            print(f"  {name}: {value}")


def new_pipeline(output: Path, transformer: ZImageTransformer2DModel, shift: float) -> ZImagePipeline:
    """The stock pipeline around a network."""
    towers = needs(output / "towers", "text")
    return ZImagePipeline(
        # A shift above 1 spends more of the steps at high noise, which large images need.
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=AutoencoderKL.from_pretrained(needs(output / "vae", "autoencoder")),
        text_encoder=CLIPTextModel.from_pretrained(towers),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(output / "tokenizer"),
        transformer=transformer,
    )


def new_transformer(text_width: int, width: int, layers: int) -> ZImageTransformer2DModel:
    """One refining layer each for latents and text, and then `layers` over both."""
    torch.manual_seed(0)
    return ZImageTransformer2DModel(
        in_channels=4,
        dim=width,
        n_layers=layers,
        n_refiner_layers=1,
        n_heads=width // HEAD_WIDTH,
        n_kv_heads=width // HEAD_WIDTH,
        cap_feat_dim=text_width,
        axes_dims=[8, 12, 12],
        axes_lens=[2 * MAX_TEXT_TOKENS, 64, 64],
    )


def cache(pipe: ZImagePipeline, source: Path, output: Path, number: int) -> ConcatDataset[dict[str, Tensor]]:
    """The data set `number` times over, each time with another draw of captions and of the autoencoder's noise."""
    adapter, folders = adapter_for_pipeline(pipe), [output / f"cache-{seed}" for seed in range(number)]
    # No cache outlives what it was made from unnoticed. The factors tell one training of the autoencoder from another.
    known = {
        **{name: pipe.vae.config[name] for name in ("scaling_factor", "shift_factor")},
        "text_encoder": network_fingerprint({"text_encoder": pipe.text_encoder}),
        "captions": digest_of((source / "train" / "metadata.jsonl").read_text()),
    }
    for seed, folder in enumerate(folders):
        cache_latents(
            ImageItems(load_image_dataset(source), SIZE, seed=seed),
            lambda pixels, generator: encode_pixels(pipe, pixels, generator),
            folder,
            encode_captions=lambda texts: encode_prompts(pipe, adapter, texts, max_sequence_length=TEXT_TOKENS),
            batch_size=64,
            fingerprint={"source": str(source), "seed": seed, **known},
        )
        finish_cache(folder)
    return ConcatDataset([CachedLatents(folder) for folder in folders])


def start(output: Path, source: str) -> None:
    """Take the parts of a pipeline that this script trained, for further training of its transformer."""
    pipe: Any = load_pipeline(source)
    folders = {"vae": "vae", "text_encoder": "towers", "tokenizer": "tokenizer", "transformer": START}
    # All at once and before anything is written, so that a wrong pipeline leaves no part for later stages.
    if not isinstance(pipe, ZImagePipeline):
        raise SystemExit(f"--pipeline must be a ZImagePipeline that this script trained, got a {type(pipe).__name__}.")
    for folder in folders.values():
        if (output / folder).is_dir():
            raise SystemExit(f"{output / folder} is there already. Take another --output.")
    for part, folder in folders.items():
        with replacing_folder(output / folder) as temporary:
            getattr(pipe, part).save_pretrained(temporary)
    print(f"Parts of {source}: {output}. Run `prepare` and `network` next.")


def balanced(data: Path, items: ConcatDataset[dict[str, Tensor]], number: int) -> Subset[dict[str, Tensor]]:
    """Images of rare subjects several times, because a third of all images are people in many skin tones.

    An image of a concept with n images comes `sqrt(most / n)` times in each pass, rounded; `most` is the largest n.

    Args:
        data: The image folder.
        items: `number` passes over its training split.
        number: How many there are.
    """
    file = data / "train" / "metadata.jsonl"
    concepts = [json.loads(line)["concept"] for line in file.read_text().splitlines()]
    counts = Counter(concepts)
    if len(items) != number * len(concepts):
        raise SystemExit(f"--balance needs all {len(concepts)} images in each cache, got {len(items)} in {number}.")
    most = max(counts.values())
    repeats = [round(math.sqrt(most / counts[each])) for each in concepts]
    rows = [i for i, times in enumerate(repeats) for _ in range(times)]
    return Subset(items, [row + len(concepts) * each for each in range(number) for row in rows])


def train_network(output: Path, args: argparse.Namespace) -> None:
    """Train by plain flow matching: ratio 0, no enhanced target, and dropped captions, which guidance needs."""
    towers = needs(output / "towers", "text")
    if (output / START).is_dir():
        transformer = ZImageTransformer2DModel.from_pretrained(output / START)
    else:
        text_width = CLIPTextModel.from_pretrained(towers).config.hidden_size
        transformer = new_transformer(text_width, args.width, args.layers)
    pipe = new_pipeline(output, transformer, shift=1.0).to(DEVICE)
    if DEVICE.type == "cpu":
        # PyTorch's fused attention is three times as slow in bfloat16 on a CPU.
        pipe.transformer.set_attention_backend("_native_math")
    data = cache(pipe, needs(output / "data", "prepare"), output, args.captions)
    data = balanced(output / "data", data, args.captions) if args.balance else data
    null = encode_null(pipe, adapter_for_pipeline(pipe), max_sequence_length=TEXT_TOKENS)
    config = UCGMTrainingConfig(
        output_dir=str(output / "network-run"),
        consistency_ratio=0.0,
        enhancement_ratio=0.0,
        label_dropout=0.1,
        teacher_decay=0.0,  # no target needs a teacher, and the averaged weights are separate
        train_batch_size=args.batch_size,
        max_train_steps=args.steps,
        learning_rate=args.learning_rate,
        lr_scheduler="cosine",
        lr_warmup_steps=min(200, args.steps // 10),
        ema_decay=round(1.0 - 1.0 / max(2.0, args.steps / 10), 6),
        mixed_precision=args.mixed_precision,
        torch_compile=args.compile,
        checkpointing_steps=100,
        logging_steps=max(1, min(20, args.steps // 10)),
        resume_from_checkpoint="latest",
    )
    trained = UCGMTrainer.from_pipeline(config, pipe, data, null_condition=null).train()
    print(f"Network: {trained}" if trained else "Stopped; run this again to go on.")


EMOJI = {
    "licence": "\nlicense: apache-2.0",
    "tags": "text-to-image, emoji",
    "title": "Emoji",
    "pictures": "Noto Emoji (Apache-2.0) and Fluent Emoji (MIT); `LICENCES.txt` has both licences",
}
# The licence of other pictures is for those to name who know it.
OTHERS = {
    "licence": "",
    "tags": "text-to-image",
    "title": "Images",
    "pictures": "pictures whose source and licence `LICENCES.txt` names",
}
CARD = """---
library_name: diffusers
pipeline_tag: text-to-image{licence}
tags: [{tags}]
---

# {title} of 64x64 pixels from text

A `ZImagePipeline` of {megabytes:.1f} MB, trained by `examples/train_emoji.py` of diffusers-ucgm on
{pictures}.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("path/to/this/folder")
image = pipe({prompt}, height=64, width=64, num_inference_steps=20, guidance_scale=2.0).images[0]
```

Give height and width: the pipeline's own default is 1024 pixels. Its guidance scale is one less than elsewhere: 0 is
no guidance and 2 is what other pipelines call 3. `ZImageImg2ImgPipeline.from_pipe(pipe)` and
`ZImageInpaintPipeline.from_pipe(pipe)` start from an image of 64x64 pixels.

It was trained on the subjects of these pictures alone.
"""


def is_of_emoji(output: Path) -> bool:
    """Whether the pictures are the emoji, and not those of another source."""
    return read_json(output / "data" / "prepared.json")["settings"]["source"] is None


def example_prompts(output: Path) -> tuple[str, ...]:
    """Prompts for the grid and the card: some for emoji, and the first captions of other pictures."""
    if is_of_emoji(output):
        return PROMPTS
    rows = map(json.loads, (output / "data" / "train" / "metadata.jsonl").read_text().splitlines())
    return tuple(dict.fromkeys(row["text"][0] for row in rows))[: len(PROMPTS)]


def edit(file: Path, before: str, after: str) -> None:
    """Replace a word of a file."""
    write_text(file, file.read_text().replace(before, after))


def name_tokenizer(file: Path) -> None:
    """Call the tokenizer's class what transformers 4 and 5 know it by; transformers 5 writes a name of its own."""
    edit(file, "TokenizersBackend", "PreTrainedTokenizerFast")


def assemble(output: Path, args: argparse.Namespace) -> None:
    """The stock pipeline's folder, in half precision, with its card and the pictures' licences."""
    trained = needs(output / "network-run" / "transformer", "network")
    pipe = new_pipeline(output, ZImageTransformer2DModel.from_pretrained(trained), args.shift)
    folder = output / "pipeline"
    with replacing_folder(folder) as temporary:
        for part in (pipe.transformer, pipe.vae, pipe.text_encoder):
            part.half()
        pipe.save_pretrained(temporary)
        # transformers 5 would compute in the files' half precision, in which CPUs are slow; diffusers does not.
        edit(temporary / "text_encoder" / "config.json", "float16", "float32")
        for file in ("model_index.json", "tokenizer/tokenizer_config.json"):
            name_tokenizer(temporary / file)
        shutil.copyfile(output / "data" / "LICENCES.txt", temporary / "LICENCES.txt")
        megabytes = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file()) / 1e6
        words = EMOJI if is_of_emoji(output) else OTHERS
        prompt = json.dumps(example_prompts(output)[0], ensure_ascii=False)
        write_text(temporary / "README.md", CARD.format(megabytes=megabytes, prompt=prompt, **words))
    print(f"Pipeline: {folder}, {megabytes:.1f} MB")
    if megabytes > MAX_MEGABYTES:
        print(f"This is more than the {MAX_MEGABYTES} MB for which the wheel has room.")


def draw(output: Path, args: argparse.Namespace) -> None:
    """Draw a grid of prompts by guidance scale, with diffusers alone."""
    pipe = DiffusionPipeline.from_pretrained(output / "pipeline").to(DEVICE)
    pipe.set_progress_bar_config(disable=True)
    prompts = args.prompts or example_prompts(output)
    blocks: dict[str, list[list[Image.Image]]] = {}
    for scale in args.guidance:
        blocks[f"guidance_scale={scale:g}"] = [
            pipe(
                prompt,
                height=SIZE,
                width=SIZE,
                num_inference_steps=args.sampling_steps,
                guidance_scale=scale,
                num_images_per_prompt=4,
                generator=torch.Generator().manual_seed(0),
            ).images
            for prompt in prompts
        ]
    print(f"Picture: {write_image(output / 'samples.png', image_grid(blocks, prompts))}")


def add_training(parser: argparse.ArgumentParser, steps: int, batch_size: int, learning_rate: float) -> None:
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)


def new_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    stage = {
        name: stages.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for name, text in (
            ("prepare", "write the pictures and captions as one image folder"),
            ("autoencoder", "train the autoencoder"),
            ("text", "train tokenizer and text encoder"),
            ("start", "take the parts of a pipeline, to train its transformer further"),
            ("network", "cache latents and captions, and train the transformer"),
            ("pipeline", "assemble the pipeline and draw a grid"),
        )
    }
    for each in stage.values():
        each.add_argument("--output", type=Path, default=Path("runs/emoji"), help="where every stage writes")
    stage["prepare"].add_argument("--source", help="pictures with captions, as `ucgm cache` takes; emoji by default")
    stage["prepare"].add_argument("--unseen-subjects", type=int, default=150, help="subjects that training never sees")
    add_training(stage["autoencoder"], 4000, 16, 2e-3)
    stage["autoencoder"].add_argument("--channels", type=int, nargs="+", default=[32, 64, 64])
    add_training(stage["text"], 1500, 128, 1e-3)
    stage["text"].add_argument("--vocabulary", type=int, default=1536, help="number of the tokenizer's tokens")
    stage["text"].add_argument("--width", type=int, default=128, help=f"a multiple of {HEAD_WIDTH}")
    stage["text"].add_argument("--layers", type=int, default=3)
    stage["start"].add_argument("--pipeline", default="emoji", help="bundled name or folder")
    add_training(stage["network"], 4000, 64, 1e-3)
    stage["network"].add_argument(
        "--balance", action="store_true", help="show subjects of few images more often than those of many"
    )
    stage["network"].add_argument("--width", type=int, default=192, help=f"a multiple of {HEAD_WIDTH}")
    stage["network"].add_argument("--layers", type=int, default=5)
    stage["network"].add_argument("--captions", type=int, default=4, help="captions of each picture")
    stage["network"].add_argument("--mixed-precision", default="bf16", choices=("no", "bf16", "fp16"))
    stage["network"].add_argument("--compile", action="store_true", help="compile its blocks, which needs g++")
    stage["pipeline"].add_argument("--shift", type=float, default=1.0, help="the scheduler's shift")
    stage["pipeline"].add_argument("--prompts", nargs="+", help="of the grid; without it, some of the pictures' kind")
    stage["pipeline"].add_argument("--guidance", type=float, nargs="+", default=[0.0, 2.0, 5.0])
    stage["pipeline"].add_argument("--sampling-steps", type=int, default=20)
    return parser


def main(words: list[str] | None = None) -> None:
    parser = new_parser()
    args = parser.parse_args(words)
    for name in ("steps", "batch_size", "captions"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}.")
    if (width := getattr(args, "width", HEAD_WIDTH)) < 1 or width % HEAD_WIDTH:
        parser.error(f"--width must be a multiple of {HEAD_WIDTH}, got {width}.")
    output: Path = args.output
    if args.stage == "prepare":
        prepare(output, source=args.source, num_subjects=args.unseen_subjects)
        print(f"Prompts of an evaluation: {write_prompts(output)}")
    elif args.stage == "autoencoder":
        if not (output / "vae").is_dir():
            train_autoencoder(output, args)
        show_reconstructions(output)
    elif args.stage == "text":
        if (output / START).is_dir():
            raise SystemExit(f"{output} has the text encoder of a pipeline, by the stage `start`. Run `network` next.")
        if not (output / "towers").is_dir():
            train_text(output, args)
        if not (output / "towers" / "preprocessor_config.json").is_file():
            complete_towers(output)
        show_retrieval(output)
    elif args.stage == "start":
        start(output, args.pipeline)
    elif args.stage == "network":
        train_network(output, args)
    else:
        assemble(output, args)
        draw(output, args)


if __name__ == "__main__":
    main()
