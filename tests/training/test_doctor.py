"""The doctor finds what is planted, and nothing where nothing is wrong."""

import pytest
import torch
from distributed_run import data, network
from exact_networks import CLASSES, LINEAR, Calling, Exact, config, samples
from torch import nn

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.training.adapters import adapter_for_pipeline
from diffusers_ucgm.training.doctor import examine
from diffusers_ucgm.training.network_adapter import convention_of_scheduler
from diffusers_ucgm.transports import get_transport


def spoiled(change):
    dataset = samples()
    dataset.latents = change(dataset.latents)
    return dataset


def frozen(names):
    model = Exact()
    model.extra = nn.Parameter(torch.zeros(1))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)
    return model


def nan_weights():
    model = Exact()
    model.weight.data[0] = torch.nan
    return model


def guided_already():
    model = Exact()
    model.config.guidance_embeds = True
    return model


MULTI_STEP = {"consistency_ratio": 0.0, "enhancement_ratio": 0.5, "teacher_decay": 0.999}


# What is planted: name of the finding, level, and what `examine` is given in place of what is right.
FAULTS = {
    "time runs the other way": ("time direction", "error", {"adapter": Calling(time=lambda t: 1.0 - t)}),
    "time is 1000 times too large": ("time scale", "error", {"adapter": Calling(time=lambda t: t * 1000.0)}),
    "time is 1000 times too small": ("time scale", "error", {"adapter": Calling(time=lambda t: t / 1000.0)}),
    "output has the other sign": ("sign", "error", {"adapter": Calling(output=lambda output, x_t, t: -output)}),
    "network predicts the noise": ("prediction", "error", {"network": Exact(LINEAR.with_prediction("epsilon"))}),
    "network predicts the data": ("prediction", "error", {"network": Exact(LINEAR.with_prediction("sample"))}),
    "weights are random": (
        "training",
        "error",
        {"adapter": Calling(output=lambda output, x_t, t: 0.0 * output + 3.0 * x_t.flip(1))},
    ),
    "time is not told": ("time", "error", {"adapter": Calling(time=lambda t: torch.full_like(t, 0.5))}),
    "time is rounded": ("time precision", "warning", {"adapter": Calling(time=lambda t: (10 * t).round() / 10)}),
    "null class is a real one": ("null condition", "error", {"adapter": Calling(null=1)}),
    "null class is out of range": ("null condition", "error", {"adapter": Calling(null=1000)}),
    "no null condition": ("null condition", "error", {"adapter": Calling(null=None)}),
    "latents are not normalised": ("latents", "warning", {"dataset": spoiled(lambda latents: latents * 5.0)}),
    "latents have an offset": ("latents", "warning", {"dataset": spoiled(lambda latents: latents + 2.0)}),
    "images are bytes": ("latents", "error", {"dataset": spoiled(lambda latents: (latents * 60 + 128).byte())}),
    "latents have NaN": ("latents", "error", {"dataset": spoiled(lambda latents: latents / 0.0)}),
    "everything is frozen": ("frozen parameters", "error", {"network": frozen(("weight", "extra"))}),
    "a part is frozen": ("frozen parameters", "warning", {"network": frozen(("weight",))}),
    "weights have NaN": ("weights", "error", {"network": nan_weights()}),
    "batch is too small": ("batch size", "warning", {"config": config(train_batch_size=1)}),
    "guided twice": ("guidance", "warning", {"network": guided_already()}),
    "guidance of a model without it": (
        "guidance",
        "warning",
        {"network": Exact(null_is_trained=False), "config": config(**MULTI_STEP)},
    ),
    "few steps in float16": ("precision", "warning", {"config": config(mixed_precision="fp16")}),
    "teacher follows the student": ("teacher", "warning", {"config": config(teacher_decay=0.99)}),
}


class Deaf(Exact):
    def forward(self, x, t, class_labels):
        return super().forward(x, t, torch.full_like(class_labels, CLASSES))


FAULTS["condition is ignored"] = ("condition", "warning", {"network": Deaf()})


def healthy_and(changes):
    right = {
        "config": config(),
        "network": Exact(),
        "dataset": samples(),
        "adapter": Calling(),
        "transport": LINEAR,
    }
    given = {**right, **changes}
    return examine(
        given["config"], given["network"], given["dataset"], adapter=given["adapter"], transport=given["transport"]
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    name, level, changes = FAULTS[fault]
    found = healthy_and(changes)
    assert (name, level) in {(finding.name, finding.level) for finding in found}, found
    assert all(finding.message.endswith((".", "?", "'")) for finding in found)


def bundled(few_step):
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(32) % 10
    call = {"num_inference_steps": 10, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    latents = pipe(labels.tolist(), **call).images
    settings = {} if few_step else MULTI_STEP
    convention = convention_of_scheduler(pipe.scheduler)
    return examine(
        config(**settings),
        pipe.transformer,
        LatentDataset(latents, labels),
        adapter=adapter_for_pipeline(pipe),
        transport=convention.transport,
    )


HEALTHY = {
    "exact network, few steps": lambda: healthy_and({}),
    "exact network, many steps": lambda: healthy_and({"config": config(**MULTI_STEP)}),
    "exact network of a reversed path": lambda: healthy_and(
        {"network": Exact(get_transport("relinear")), "transport": get_transport("relinear")}
    ),
    "exact network of noise": lambda: healthy_and(
        {
            "network": Exact(LINEAR.with_prediction("epsilon")),
            "transport": LINEAR.with_prediction("epsilon"),
            "config": config(**MULTI_STEP),
        }
    ),
    "bundled model, few steps": lambda: bundled(True),
    "bundled model, many steps": lambda: bundled(False),
    "new network": lambda: examine(config(**MULTI_STEP), network(), data(), is_pretrained=False),
}


def test_nothing_is_found_where_nothing_is_wrong_and_most_faults_are(capsys):
    alarms = {name: run() for name, run in HEALTHY.items()}
    found = sum(name in {finding.name for finding in healthy_and(changes)} for name, _, changes in FAULTS.values())
    number = sum(len(findings) for findings in alarms.values())
    with capsys.disabled():
        print(  # noqa: T201
            f"\ndoctor: {found} of {len(FAULTS)} faults found, {number} false alarms on {len(HEALTHY)} healthy runs"
        )
    assert not number, {name: findings for name, findings in alarms.items() if findings}
    assert len(FAULTS) >= 15
    assert found == len(FAULTS)


def test_a_look_changes_nothing():
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    examine(config(), model, data())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_data_of_another_shape_is_an_error_with_the_networks_words():
    (finding,) = examine(config(), network(), LatentDataset(torch.randn(32, 3, 2, 2), torch.arange(32) % 2))
    assert (finding.name, finding.level) == ("call", "error")


def test_errors_come_first():
    findings = healthy_and({"config": config(train_batch_size=1), "adapter": Calling(time=lambda t: 1.0 - t)})
    levels = [finding.level for finding in findings]
    assert levels == sorted(levels)
    assert set(levels) == {"error", "warning"}


def test_a_list_of_samples_is_examined_like_any_data_set():
    dataset = data()
    items = [dataset[i] for i in range(len(dataset))]
    assert examine(config(), network(), items) == examine(config(), network(), dataset)
