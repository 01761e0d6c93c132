"""The demo draws each prompt in every way of sampling, from one noise, with the model inside the package."""

import torch

from diffusers_ucgm.generation import demo
from diffusers_ucgm.generation.demo import DEMO_PROMPTS, demo_blocks


def test_every_way_of_sampling_draws_every_prompt():
    blocks = dict(demo_blocks(["red apple, fluent style", "flag of Japan"], num_images=2))
    assert list(blocks) == [
        "Euler, 2 steps",
        "UCGM, 2 steps, LoRA",
        "Euler, 4 steps",
        "UCGM, 4 steps, LoRA",
        "Euler, 20 steps",
        "UCGM, 20 steps",
    ]
    for title, found in blocks.items():
        assert found.num_network_calls == int(title.split()[1])
        assert [len(row) for row in found.images] == [2, 2]
        assert {image.size for row in found.images for image in row} == {(64, 64)}
    drawn = {found.images[0][0].tobytes() for found in blocks.values()}
    assert len(drawn) == len(blocks)


def test_many_images_are_drawn_in_batches_that_any_machine_holds(monkeypatch):
    sizes = []
    monkeypatch.setattr(demo, "load_pipeline", lambda name: torch.nn.Module())
    monkeypatch.setattr(demo, "load_pipeline_lora", lambda *_: None)
    monkeypatch.setattr(demo, "generate_images", lambda *_, batch_size, **__: sizes.append(batch_size))
    next(demo_blocks(["red apple"] * 30, num_images=10_000))
    assert sizes == [64]


def test_the_demo_follows_its_seed_and_leaves_the_global_one_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    title, first = next(demo_blocks(DEMO_PROMPTS[:1], num_images=1, seed=1))
    assert first.images == next(demo_blocks(DEMO_PROMPTS[:1], num_images=1, seed=1))[1].images
    assert first.images != next(demo_blocks(DEMO_PROMPTS[:1], num_images=1, seed=2))[1].images
    assert torch.equal(torch.get_rng_state(), before)
    assert title == "Euler, 2 steps"
