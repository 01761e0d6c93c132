"""Values that must be finite, and devices that must exist."""

import pytest
import torch

from diffusers_ucgm.checks import check_device, check_finite


def test_devices_are_of_this_machine():
    assert check_device("cpu", torch.bfloat16) == torch.device("cpu")
    with pytest.raises(ValueError, match="`--device` must be a device such as cpu or cuda, got 'gpu'"):
        check_device("gpu")
    if not torch.accelerator.is_available():
        for word in ("cuda", "cuda:3", "mps"):
            with pytest.raises(ValueError, match="must be of this machine, which has a CPU alone"):
                check_device(word)


def test_weights_in_float16_are_not_for_a_cpu():
    with pytest.raises(ValueError, match="`--torch-dtype` must be fp32 or bf16 on a CPU, got fp16"):
        check_device("cpu", torch.float16)


def test_the_device_of_the_machine_is_the_default():
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    expected = found or torch.device("cpu")
    assert check_device(None) == expected


def test_values_that_are_not_finite_are_counted():
    check_finite("x", torch.tensor([1, 2]))
    check_finite("x", torch.zeros(3))
    values = torch.tensor([0.0, float("nan"), float("inf")])
    with pytest.raises(ValueError, match=r"`x` must be finite, .*NaN or infinity in 2 of 3 values in row 3\. Stop"):
        check_finite("x", values, "row 3", "Stop.")
