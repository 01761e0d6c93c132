"""Fingerprints: another model or setting has another one, and every process finds the same."""

import os
import subprocess
import sys

import pytest
import torch
from exact_pipeline import exact_pipeline

from diffusers_ucgm.fingerprint import fingerprint, network_fingerprint, public_settings


def test_fingerprint_follows_weights_settings_and_defaults():
    pipe, words = exact_pipeline(), set()
    words.add(fingerprint(pipe))
    assert fingerprint(exact_pipeline()) in words
    with torch.no_grad():
        pipe.transformer.means.flatten()[3] += 1e-4
    words |= {fingerprint(pipe), fingerprint(pipe, guidance_scale=2.0)}
    pipe.register_to_config(call_defaults={"guidance_scale": 2.0})
    words.add(fingerprint(pipe))
    words |= {fingerprint(pipe, prompt_embeds=torch.full((1, 2), value)) for value in (0.0, 1.0)}
    assert len(words) == 6
    assert fingerprint(exact_pipeline(std=0.3)) not in words
    with pytest.raises(TypeError, match="settings must be numbers, strings or tensors, got function"):
        fingerprint(pipe, callback=lambda: None)


def test_every_process_gives_a_pipeline_the_same_fingerprint():
    code = (
        "from exact_pipeline import exact_pipeline\n"
        "from diffusers_ucgm.fingerprint import fingerprint, public_settings\n"
        "pipe = exact_pipeline()\n"
        "print(fingerprint(pipe, scheduler=public_settings(pipe.scheduler.config)))"
    )
    # The order of sets, in which diffusers notes what was left at its default, is another in every process.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    pipe = exact_pipeline()
    assert run.stdout.strip() == fingerprint(pipe, scheduler=public_settings(pipe.scheduler.config))


def test_parts_select_the_components_that_count():
    networks = {"transformer": exact_pipeline().transformer, "vae": torch.nn.Linear(2, 2)}

    def words():
        return [network_fingerprint(networks, parts=parts) for parts in (None, ["transformer", "vae"], ["vae"])]

    before = words()
    assert len(set(before)) == 3
    with torch.no_grad():
        networks["vae"].weight += 1.0
    after = words()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False]


def test_a_network_without_values_has_a_fingerprint_of_its_shapes():
    networks = [torch.nn.Linear(2, number, device="meta") for number in (2, 2, 3)]
    words = [network_fingerprint({"unet": network}) for network in networks]
    assert words[0] == words[1] != words[2]
