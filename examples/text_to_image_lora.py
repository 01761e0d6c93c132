"""Tune a text-to-image pipeline to 4 steps with LoRA: pictures and captions to a file that `load_lora_weights` takes.

    python examples/text_to_image_lora.py --output runs/lora
    python examples/text_to_image_lora.py --output runs/lora --pipeline stabilityai/stable-diffusion-3.5-medium \
        --source my-pictures --size 1024 --torch-dtype bfloat16 --rank 64 --steps 2000 --learning-rate 1e-4

Without `--pipeline` it makes a tiny Stable Diffusion 3 with random weights, and without `--source` coloured squares
with captions: the whole way in half a minute on a CPU, and nothing to look at. Every stage goes on where it stopped.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from diffusers_ucgm import UCGMScheduler, UCGMTrainer, UCGMTrainingConfig
from diffusers_ucgm.data.images import ImageItems, load_image_dataset
from diffusers_ucgm.data.latent_cache import CachedLatents, cache_latents, finish_cache
from diffusers_ucgm.training.adapters import adapter_for_pipeline
from diffusers_ucgm.training.encoding import encode_null, encode_pixels, encode_prompts


COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 220), "yellow": (230, 210, 40)}


def make_pictures(folder: Path) -> None:
    """Squares on grey, with captions as `datasets`' image folder has them."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(32):
        name, colour = list(COLOURS.items())[i % len(COLOURS)]
        picture = Image.new("RGB", (48, 40), (128, 128, 128))
        picture.paste(colour, (8 + i % 8, 8, 28 + i % 8, 28))
        picture.save(folder / f"{i:02d}.png")
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "text": f"a {name} square"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def make_tiny_pipeline(folder: Path) -> None:
    """A Stable Diffusion 3 of 20,000 random weights, with a tokenizer of letters and without T5."""
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    spelling = folder.with_name("spelling")
    spelling.mkdir(parents=True, exist_ok=True)
    (spelling / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (spelling / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(spelling / "vocab.json"), str(spelling / "merges.txt"), model_max_length=24)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=16,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            shift_factor=0.06,
        ),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)


def cache(pipe: DiffusionPipeline, name: str, source: Path, folder: Path, size: int) -> dict[str, torch.Tensor]:
    """Encode pictures and captions once; gives what stands for no caption."""
    adapter = adapter_for_pipeline(pipe)
    cache_latents(
        ImageItems(load_image_dataset(source), size, flip=True),
        lambda pixels, generator: encode_pixels(pipe, pixels, generator),
        folder,
        encode_captions=lambda texts: encode_prompts(pipe, adapter, texts),
        fingerprint={"pipeline": name, "source": str(source), "size": size},
    )
    index = finish_cache(folder)
    print(f"Cache: {index['num_samples']} pictures, {len(index['skipped'])} left out")
    null = folder / "null_condition.safetensors"
    if not null.is_file():
        save_file(encode_null(pipe, adapter), null)
    return load_file(null)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pipeline", help="folder or repository of the Hub; a tiny random one by default")
    parser.add_argument("--source", type=Path, help="folder of pictures with metadata.jsonl; squares by default")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--prompt", default="a red square")
    parser.add_argument("--torch-dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    if args.rank < 1:
        parser.error(f"--rank must be at least 1, got {args.rank}.")
    name, source = args.pipeline or str(args.output / "tiny-sd3"), args.source or args.output / "pictures"
    if args.pipeline is None and not Path(name).is_dir():
        make_tiny_pipeline(Path(name))
    if args.source is None and not source.is_dir():
        make_pictures(source)
    load = {"torch_dtype": getattr(torch, args.torch_dtype), "use_safetensors": True}
    if args.pipeline is None:
        load |= {"text_encoder_3": None, "tokenizer_3": None}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = DiffusionPipeline.from_pretrained(name, **load).to(device)
    null = cache(pipe, name, source, args.output / "cache", args.size)
    config = UCGMTrainingConfig(
        output_dir=str(args.output / "run"),
        lora_rank=args.rank,
        teacher_decay=1.0,  # the base model itself
        consistency_ratio=1.0,
        enhancement_ratio=1.3,
        huber_c=5.0,
        label_dropout=0.0,
        time_distribution=(0.8, 1.0, 1.0),
        learning_rate=args.learning_rate,
        max_grad_norm=0.1,
        ema_decay=0.0,
        train_batch_size=args.batch_size,
        max_train_steps=args.steps,
        gradient_checkpointing=args.pipeline is not None,
        mixed_precision="bf16" if device == "cuda" else "no",
        logging_steps=max(1, args.steps // 10),
        resume_from_checkpoint="latest",
    )
    trainer = UCGMTrainer.from_pipeline(config, pipe, CachedLatents(args.output / "cache"), null_condition=null)
    lora = trainer.train()
    if lora is None:
        return
    # From here on as anybody would use it.
    pipe = DiffusionPipeline.from_pretrained(name, **load).to(device)
    pipe.load_lora_weights(lora, weight_name="pytorch_lora_weights.safetensors")
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, preset="few-step")
    pictures = pipe(
        args.prompt,
        num_inference_steps=4,
        guidance_scale=1.0,
        height=args.size,
        width=args.size,
        generator=torch.Generator().manual_seed(0),
    ).images
    pictures[0].save(args.output / "picture.png")
    print(f"LoRA: {lora}\nPicture: {args.output / 'picture.png'}")


if __name__ == "__main__":
    main()
