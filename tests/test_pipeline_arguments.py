"""What the parts and the arguments of a pipeline must be."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.constraints import check
from diffusers_ucgm.pipeline_arguments import (
    CONSTRUCTOR_ARGUMENTS,
    check_call_defaults,
    check_guided_channels,
    check_latent_statistics,
    class_ids,
    names_by_id,
    schedule_arguments,
)


NAMES = {0: "Bag", 1: "Coat", "2": "Ankle boot"}


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        (1, [1]),
        ("coat", [1]),
        (["ankle_boot", 0, np.int64(3)], [2, 0, 3]),
        (torch.tensor([[3], [0]]), [3, 0]),
        (np.array(2), [2]),
    ],
)
def test_class_ids_are_found_by_id_or_name(labels, ids):
    assert class_ids(labels, NAMES, 4) == ids


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "`class_labels` must be ids or names, or a list of them, got None"),
        ([], r"`class_labels` must not be empty, got \[\]"),
        (4, r"`class_labels` must be in \[0, 3\], got 4"),
        ([True], "`class_labels` must be ids or names, got True"),
        ("hat", r"`class_labels` must be ids or names of `id2label`, \['Ankle boot', 'Bag', 'Coat'\], got 'hat'"),
    ],
)
def test_other_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        class_ids(labels, NAMES, 4)


@pytest.mark.parametrize("names", [{0: "a", "0": "b"}, {-1: "a"}, {"-1": "a"}, {1.5: "a"}, {True: "a"}, {0: 1}, ["a"]])
def test_names_are_by_id_each_once(names):
    with pytest.raises(ValueError, match="`id2label` must be a mapping of class ids to names, each id once"):
        check(CONSTRUCTOR_ARGUMENTS, {"id2label": names})


def test_keys_of_names_become_whole_numbers():
    check(CONSTRUCTOR_ARGUMENTS, {"id2label": NAMES})
    assert names_by_id(NAMES) == {0: "Bag", 1: "Coat", 2: "Ankle boot"}
    assert names_by_id(None) is None


def test_times_are_for_schedulers_that_take_them():
    scheduler = UCGMScheduler()
    assert schedule_arguments(scheduler, timesteps=None, sigmas=[1.0, 0.5]) == {"sigmas": [1.0, 0.5]}
    assert schedule_arguments(DDIMScheduler(), timesteps=None, sigmas=None) == {}
    with pytest.raises(ValueError, match="`sigmas` must be left out with DDIMScheduler, which takes none"):
        schedule_arguments(DDIMScheduler(), sigmas=[1.0])


def test_parts_that_do_not_fit_each_other_are_refused():
    check_guided_channels(4, 4)
    check_guided_channels(5, None)
    with pytest.raises(ValueError, match="`guided_channels` must be at most the 4 of the transformer, got 5"):
        check_guided_channels(5, 4)
    check_call_defaults(["guidance_scale"])
    with pytest.raises(ValueError, match=r"`call_defaults` must name some of \['num_inference_steps', .*got \['x'\]"):
        check_call_defaults(["x", "guidance_scale"])
    with pytest.raises(ValueError, match="`latents_mean` and `latents_std` must be of one length, got 1 and 2"):
        check_latent_statistics([0.0], [1.0, 1.0])
