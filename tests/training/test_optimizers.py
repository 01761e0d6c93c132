"""Optimizers and learning rates of a run, of torch and of other packages."""

import json
import sys

import pytest
import torch
from distributed_run import network
from option_runs import trained


pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def test_a_piecewise_constant_rate_follows_its_rules(tmp_path):
    trained(tmp_path, lr_scheduler="piecewise_constant", lr_step_rules="1:1,0.1:3,0.01", logging_steps=1)
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])


# --- optimizers ------------------------------------------------------------------------------------------------------


def test_optimizers_of_other_packages_are_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ImportError, match="`adamw_8bit` needs bitsandbytes: `pip install bitsandbytes`"):
        trained(tmp_path, optimizer="adamw_8bit")
    with pytest.raises(ImportError, match="`adamw_schedule_free` needs schedulefree: `pip install schedulefree`"):
        trained(tmp_path, optimizer="adamw_schedule_free", ema_decay=0.0)


def test_a_schedule_free_run_saves_its_averages_and_resumes_bitwise(tmp_path):
    pytest.importorskip("schedulefree")
    options = {"optimizer": "adamw_schedule_free", "ema_decay": 0.0, "checkpointing_steps": 2, "max_train_steps": 6}
    whole = trained(tmp_path, **options)
    resumed = trained(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-4"), **options)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    saved = type(network()).from_pretrained(tmp_path / "transformer").state_dict()
    assert not torch.equal(saved["proj_out_2.weight"], whole["proj_out_2.weight"])
