"""The settings of an objective of two times: light, and one by one those of the loss."""

import subprocess
import sys
from dataclasses import fields
from inspect import cleandoc

from diffusers_ucgm import UCGMLoss
from diffusers_ucgm.second_time_objective import SecondTime


def test_every_setting_is_one_of_the_loss_with_the_same_default():
    of_loss = {each.name: each.default for each in fields(UCGMLoss)}
    assert {each.name: each.default for each in fields(SecondTime)}.items() <= of_loss.items()


def test_every_setting_is_described():
    for each in fields(SecondTime):
        assert f"\n    {each.name}: " in cleandoc(SecondTime.__doc__ or "")


def test_the_settings_are_shown_without_torch():
    code = "import sys, diffusers_ucgm.second_time_objective; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
