"""The UCGM-T objective: reference values, exact solutions, and what must hold for any network."""

import json
import math
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from channel_networks import NULL, RATIOS, ChannelNetwork, batch
from safetensors.torch import load_file
from torch import nn

from diffusers_ucgm.loss import UCGMLoss
from diffusers_ucgm.teacher import Teacher
from diffusers_ucgm.transports import TRANSPORTS, Transport, get_transport


FOLDER = Path(__file__).parent / "goldens"


CASES = json.loads((FOLDER / "trainer.json").read_text())


@pytest.fixture(scope="module")
def golden():
    return load_file(FOLDER / "trainer.safetensors")


@pytest.fixture(scope="module")
def toy_weights():
    return load_file(FOLDER / "toy_model.safetensors")


class ToyNetwork(nn.Module):
    """The network of the reference values; counts its calls and notes whether they carry gradient."""

    def __init__(self, weights, prefix=""):
        super().__init__()
        for name in ("emb", "u", "w_in", "w_out"):
            setattr(self, name, nn.Parameter(weights[prefix + name].clone()))
        self.calls = []

    def forward(self, x, t, y):
        self.calls.append(torch.is_grad_enabled())
        hidden = torch.tanh(x.flatten(1) @ self.w_in + t[:, None] * self.u + self.emb[y])
        return (hidden @ self.w_out).view_as(x)


def gradients(network):
    return {name: parameter.grad for name, parameter in network.named_parameters()}


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_reproduces_the_reference(case, golden, toy_weights):
    name = case["name"]
    student = ToyNetwork(toy_weights)
    teacher = Teacher(student, case["ema_decay_rate"])
    if case["ema_decay_rate"] > 0:
        teacher.model = ToyNetwork(golden, "teacher.").requires_grad_(False)
    if case["teacher_update_decay_this_step"] is not None:
        teacher.decay = case["teacher_update_decay_this_step"]
        teacher.update(student)
        assert teacher.decay == pytest.approx(case["teacher_decay_next"], abs=1e-9)
    loss = UCGMLoss(
        transport=case["transport_type"].lower(),
        consistency_ratio=case["consistc_ratio"],
        enhancement_ratio=case["enhanced_ratio"],
        enhancement_range=case["enhanced_range"],
        huber_c=case["scaled_cbl_eps"],
        cosine_term=case["wt_cosine_loss"],
        cosine_weighting=case["weight_funcion"] == "Cosine",
        label_dropout=case["lab_drop_ratio"],
    )
    assert loss.effective_enhancement_ratio == pytest.approx(case["effective_enhanced_ratio"])
    x, labels = golden["x"], golden["labels"]
    dropped = torch.arange(len(x)) >= len(x) - case["num_dropped_labels"]
    output = loss(
        student,
        x,
        {"y": labels},
        {"y": NULL},
        teacher=teacher.model,
        t=golden[f"{name}.t"],
        noise=golden[f"{name}.z"],
        dropped=dropped,
    )
    output.loss.backward()
    # The tolerances of the reference values' README; targets at a ratio above 0 hold a difference quotient, which
    # divides rounding by 0.01.
    torch.testing.assert_close(output.prediction, golden[f"{name}.pred"], rtol=1e-5, atol=1e-6)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if case["consistc_ratio"] > 0 else {"rtol": 1e-5, "atol": 1e-5}
    # Within a step of 0 or 1 the reference asks the network outside [0, 1], which ours must not.
    within = (
        (output.t > 0.005) & (output.t < 0.995)
        if case["consistc_ratio"] == 1
        else torch.ones(len(x), dtype=torch.bool)
    )
    assert within.sum() >= len(x) - 2
    torch.testing.assert_close(output.target[within], golden[f"{name}.target"][within], **tolerance)
    torch.testing.assert_close(
        output.per_sample_loss[within], golden[f"{name}.per_sample_loss"][within], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(output.loss.detach().reshape(1), golden[f"{name}.loss"], rtol=1e-5, atol=0.0)
    for parameter_name, gradient in gradients(student).items():
        torch.testing.assert_close(gradient, golden[f"{name}.grad.{parameter_name}"], rtol=1e-3, atol=1e-5)
    assert len(student.calls) == case["student_forward_calls"]


# --- inputs and randomness -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", RATIOS)
def test_inputs_are_unchanged_afterwards(ratio):
    x, noise, t, labels = batch()
    dropped = torch.tensor([True, False] * 3)
    null = torch.tensor([NULL])
    inputs = {"x": x, "noise": noise, "t": t, "labels": labels, "dropped": dropped, "null": null}
    before = {name: value.clone() for name, value in inputs.items()}
    condition, null_condition = {"y": labels}, {"y": null}
    loss = UCGMLoss(consistency_ratio=ratio, enhancement_ratio=0.6, cosine_term=True, cosine_weighting=True)
    loss(ChannelNetwork(), x, condition, null_condition, t=t, noise=noise, dropped=dropped).loss.backward()
    for name, value in inputs.items():
        assert torch.equal(value, before[name]), name
    assert condition == {"y": labels}
    assert null_condition["y"] is null


def test_inputs_need_not_be_writable():
    # Expanded tensors share one element among all rows: writing to them in place fails or spreads.
    x, noise, t, labels = batch()
    expanded = x[:1].expand_as(x), noise[:1].expand_as(x), t[2:3].expand(6), labels[:1].expand(6)
    copies = [value.contiguous().clone() for value in expanded]
    loss = UCGMLoss(consistency_ratio=1.0, enhancement_ratio=0.6)
    dropped = torch.tensor([True, False] * 3)

    def value(x, noise, t, labels):
        return loss(ChannelNetwork(), x, {"y": labels}, {"y": NULL}, t=t, noise=noise, dropped=dropped).loss

    assert torch.equal(value(*expanded), value(*copies))


@pytest.mark.parametrize("ratio", RATIOS)
def test_generator_decides_everything_and_global_state_nothing(ratio):
    x, _, _, labels = batch()
    network = nn.Dropout(0.5)
    loss = UCGMLoss(consistency_ratio=ratio, enhancement_ratio=0.5, label_dropout=0.5)

    def evaluate(seed):
        generator = torch.Generator().manual_seed(seed)
        return loss(
            lambda x_t, t, y: network(x_t) + y[:, None, None, None], x, {"y": labels}, {"y": 9}, generator=generator
        )

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = evaluate(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    again, other = evaluate(5), evaluate(6)
    for name in ("loss", "per_sample_loss", "prediction", "target", "t", "noise", "dropped"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.t, other.t)


def test_without_a_generator_the_global_seed_decides():
    x, _, _, labels = batch()
    loss = UCGMLoss()

    def evaluate(seed):
        torch.manual_seed(seed)
        return [loss(ChannelNetwork(), x, {"y": labels}, {"y": NULL}) for _ in range(2)]

    (first, second), (again, _), (other, _) = evaluate(0), evaluate(0), evaluate(1)
    assert torch.equal(first.loss, again.loss)
    assert not torch.equal(first.loss, other.loss)
    # The seeded calls of the network must not put the state back to where it was before the draws.
    assert not torch.equal(first.noise, second.noise)


def test_result_does_not_depend_on_the_default_dtype():
    x, noise, t, labels = batch()
    loss = UCGMLoss(consistency_ratio=1.0, enhancement_ratio=1.3, huber_c=5.0, cosine_weighting=True)
    network = ChannelNetwork()

    def evaluate():
        return loss(network, x, {"y": labels}, {"y": NULL}, generator=torch.Generator().manual_seed(0)).loss

    expected = evaluate()
    torch.set_default_dtype(torch.float64)
    try:
        actual = evaluate()
    finally:
        torch.set_default_dtype(torch.float32)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


class RecordingDropout(nn.Module):
    """Dropout that keeps the masks it drew."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(()))
        self.masks = []

    def forward(self, x, t):
        mask = self.dropout(torch.ones_like(x))
        self.masks.append(mask)
        return self.scale * mask * x


@pytest.mark.parametrize(("ratio", "calls"), [(0.0, 2), (0.5, 2), (1.0, 3)])
def test_all_calls_of_a_step_share_the_dropout_and_steps_do_not(ratio, calls):
    x, *_ = batch()
    network = RecordingDropout()
    loss = UCGMLoss(consistency_ratio=ratio, enhancement_ratio=0.5, label_dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    loss(network, x, generator=generator)
    assert len(network.masks) == calls
    assert all(torch.equal(mask, network.masks[0]) for mask in network.masks)
    loss(network, x, generator=generator)
    assert not torch.equal(network.masks[0], network.masks[calls])


def test_drawn_times_follow_the_distribution():
    # Beta(2, 1) has mean 2/3; 4,000 draws have a standard error of 0.004.
    x = torch.zeros(4000, 1)
    loss = UCGMLoss(label_dropout=0.0, time_distribution=(2.0, 1.0, 1.0))
    t = loss(lambda x_t, t: x_t, x, generator=torch.Generator().manual_seed(0)).t
    assert t.mean().item() == pytest.approx(2 / 3, abs=0.02)
    scaled = replace(loss, time_distribution=(2.0, 1.0, 1.5))
    t = scaled(lambda x_t, t: x_t, x, generator=torch.Generator().manual_seed(0)).t
    assert t.max() == 1.0
    # P(1.5 Beta(2, 1) > 1) = 1 - (2/3)^2.
    assert (t == 1.0).float().mean().item() == pytest.approx(5 / 9, abs=0.04)


# --- label dropout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 9))
def test_labels_are_dropped_by_sample_at_the_asked_rate_in_any_batch_size(size):
    loss = UCGMLoss(label_dropout=0.1)
    generator = torch.Generator().manual_seed(size)
    x, labels = torch.zeros(size, 1), torch.zeros(size, dtype=torch.long)
    masks = torch.stack(
        [loss(lambda x_t, t, y: x_t, x, {"y": labels}, {"y": 1}, generator=generator).dropped for _ in range(400)]
    )
    # Five standard errors of a share of 0.1; a rounded count would give 0, 1/8 or, as in the reference, 1.
    assert masks.float().mean().item() == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / masks.numel()))
    assert masks.float().mean(0).tolist() == pytest.approx([0.1] * size, abs=5 * math.sqrt(0.09 / 400))
    # The count varies, as of independent draws: its variance is 0.09 per sample.
    assert masks.sum(1).float().var().item() == pytest.approx(0.09 * size, rel=0.5)


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("label_dropout", [0.0, 1.0])
def test_no_label_is_dropped_at_0_and_every_label_at_1(size, label_dropout):
    x, _, _, labels = batch(size)
    network = ChannelNetwork()
    loss = UCGMLoss(label_dropout=label_dropout)
    output = loss(network, x, {"y": labels}, {"y": NULL}, generator=torch.Generator().manual_seed(0))
    expected = labels if label_dropout == 0.0 else torch.full_like(labels, NULL)
    assert torch.equal(network.calls[0][2], expected)
    assert torch.equal(output.dropped, torch.full((size,), bool(label_dropout)))


@pytest.mark.parametrize("ratio", RATIOS)
def test_exactly_the_dropped_rows_see_the_null_label(ratio):
    x, _, _, labels = batch(8)
    network, teacher = ChannelNetwork(), ChannelNetwork(seed=1)
    loss = UCGMLoss(consistency_ratio=ratio, enhancement_ratio=0.5, label_dropout=0.5)
    output = loss(network, x, {"y": labels}, {"y": NULL}, teacher=teacher, generator=torch.Generator().manual_seed(0))
    assert 0 < output.dropped.sum() < 8
    expected = torch.where(output.dropped, NULL, labels)
    for _, _, seen in network.calls:
        assert torch.equal(seen, expected)
    (_, _, seen) = teacher.calls[0]
    # At ratio 0 the teacher gives the unconditional estimate, above 0 the conditional one.
    assert torch.equal(seen, torch.full_like(labels, NULL) if ratio == 0.0 else expected)


@pytest.mark.parametrize("null_rows", [(), (1,), (4,)])
def test_null_condition_of_a_prompt_replaces_whole_rows(null_rows):
    x, noise, t, _ = batch(4)
    prompt = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
    null = torch.zeros(*null_rows, 5, 2)
    seen = []

    def network(x_t, t, prompt, scale):
        seen.append((prompt, scale))
        return x_t

    dropped = torch.tensor([False, True, False, True])
    condition, null_condition = {"prompt": prompt, "scale": 2.0}, {"prompt": null, "scale": 2.0}
    UCGMLoss()(network, x, condition, null_condition, t=t, noise=noise, dropped=dropped)
    ((got, scale),) = seen
    assert scale == 2.0
    assert torch.equal(got[~dropped], prompt[~dropped])
    assert torch.equal(got[dropped], torch.zeros(2, 5, 2))


# --- times handed to the network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("transport", ["linear", "relinear", "edm"])
def test_network_times_are_float32_and_within_0_and_1(transport, ratio, dtype):
    t = torch.tensor([0.0, 0.002, 0.3, 0.7, 0.999, 1.0])
    x, noise, _, labels = batch(6, dtype=dtype)
    network = ChannelNetwork(dtype=dtype)
    loss = UCGMLoss(transport=transport, consistency_ratio=ratio, enhancement_ratio=0.5)
    output = loss(network, x, {"y": labels}, {"y": NULL}, t=t, noise=noise)
    assert len(network.calls) == {0.0: 2, 0.5: 2, 1.0: 3}[ratio]
    for x_t, time, _ in network.calls:
        assert x_t.dtype == dtype
        assert x_t.shape == x.shape
        assert time.dtype == torch.float32
        assert time.shape == t.shape
        assert time.min() >= 0.0
        assert time.max() <= 1.0
    # The first call is the student's, at t itself in the network's own direction.
    own = 1.0 - t if transport == "relinear" else t
    assert torch.equal(network.calls[0][1], own)
    assert output.loss.isfinite()
    assert output.loss.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("transport", ["linear", "relinear"])
def test_difference_quotient_is_taken_half_a_hundredth_before_and_after(transport):
    x, noise, t, labels = batch()
    network = ChannelNetwork(dtype=torch.bfloat16)
    loss = UCGMLoss(transport=transport, consistency_ratio=1.0, label_dropout=0.0)
    loss(network, x.bfloat16(), {"y": labels}, t=t, noise=noise.bfloat16())
    times = sorted((network.calls[1][1], network.calls[2][1]), key=lambda time: time[0].item())
    own = 1.0 - t if transport == "relinear" else t
    # In bfloat16 such a step would be off by half of itself.
    torch.testing.assert_close(times[0], own - 0.005, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(times[1], own + 0.005, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("transport", ["linear", "relinear"])
def test_earlier_time_of_a_middle_ratio_lies_nearer_to_data(transport):
    x, noise, t, labels = batch()
    network = ChannelNetwork()
    loss = UCGMLoss(transport=transport, consistency_ratio=0.9, label_dropout=0.0)
    loss(network, x, {"y": labels}, t=t, noise=noise)
    own = 1.0 - 0.9 * t if transport == "relinear" else 0.9 * t
    torch.testing.assert_close(network.calls[1][1], own, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(network.calls[1][0], TRANSPORTS[transport].sample(x, noise, 0.9 * t))


@pytest.mark.parametrize("enhancement", [0.0, 0.6])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
def test_loss_and_gradient_are_finite_at_both_ends_of_time(transport, ratio, enhancement):
    x, noise, _, labels = batch(8)
    t = torch.tensor([0.0, 1e-8, 1e-3, 0.005, 0.995, 0.999, 1.0, 1.0])
    network = ChannelNetwork()
    loss = UCGMLoss(
        transport=transport,
        consistency_ratio=ratio,
        enhancement_ratio=enhancement,
        cosine_term=True,
        cosine_weighting=True,
    )
    dropped = torch.tensor([False, True] * 4)
    output = loss(network, x, {"y": labels}, {"y": NULL}, t=t, noise=noise, dropped=dropped)
    output.loss.backward()
    assert output.per_sample_loss.isfinite().all()
    assert output.target.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(network).values())


# --- the exact solution ----------------------------------------------------------------------------------------------


class PointMassNetwork(nn.Module):
    """The exact prediction where all data is the one point `x0`: `z = (x_t - gamma x0) / alpha` is known."""

    def __init__(self, transport, x0):
        super().__init__()
        self.transport = transport
        self.x0 = x0
        self.offset = nn.Parameter(torch.zeros(x0.shape, dtype=x0.dtype))

    def forward(self, x_t, t, y=None):
        t = self.transport.model_time(t.to(x_t.dtype))
        alpha, gamma, alpha_hat, gamma_hat = (
            function(t)[:, None, None]
            for function in (
                self.transport.alpha,
                self.transport.gamma,
                self.transport.alpha_hat,
                self.transport.gamma_hat,
            )
        )
        z = (x_t - gamma * self.x0) / alpha
        return alpha_hat * z + gamma_hat * self.x0 + self.offset


@pytest.mark.parametrize("enhancement", [0.0, 0.6])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
def test_loss_at_the_exact_solution_is_zero_and_so_is_its_gradient(transport, ratio, enhancement):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(6, 3, 2, generator=generator, dtype=torch.float64)
    network = PointMassNetwork(TRANSPORTS[transport], x0)
    loss = UCGMLoss(
        transport=transport,
        consistency_ratio=ratio,
        enhancement_ratio=enhancement,
        huber_c=1.0,
        cosine_term=True,
        cosine_weighting=True,
    )
    t = torch.linspace(0.05, 0.95, 6)
    labels = torch.zeros(6, dtype=torch.long)
    dropped = torch.tensor([True, False] * 3)
    output = loss(network, x0.expand(6, 3, 2), {"y": labels}, {"y": 1}, t=t, noise=noise, dropped=dropped)
    output.loss.backward()
    # The network's time is float32 and EDM's coefficients change by a factor of e^10 in it: times are off by 6e-8, and
    # the difference quotient divides by 0.01.
    torch.testing.assert_close(output.target, output.prediction, rtol=1e-4, atol=1e-4)
    assert output.loss.item() == pytest.approx(0.0, abs=1e-7)
    assert network.offset.grad.abs().max().item() == pytest.approx(0.0, abs=1e-4)


def test_gradient_is_exactly_zero_where_the_root_mean_square_is_zero():
    # All numbers are small integers over a power of two, so nothing is rounded.
    x0 = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    noise = torch.tensor([[[2.0, 1.0], [-1.0, 4.0]], [[0.0, -3.0], [5.0, 1.0]]])
    network = PointMassNetwork(TRANSPORTS["linear"], x0)
    output = UCGMLoss(label_dropout=0.0)(network, x0.expand(2, 2, 2), t=torch.tensor([0.5, 0.25]), noise=noise)
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert torch.equal(network.offset.grad, torch.zeros(2, 2))


def test_loss_tells_a_wrong_network_from_the_exact_one_at_every_ratio():
    x0 = torch.ones(3, 2, dtype=torch.float64)
    network = PointMassNetwork(TRANSPORTS["linear"], x0)
    noise = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for ratio in (0.0, 0.5, 1.0):
        loss = UCGMLoss(consistency_ratio=ratio, label_dropout=0.0)
        output = loss(
            lambda x_t, t: network(x_t, t) + t[:, None, None] * 0.1,
            x0.expand(4, 3, 2),
            t=torch.full((4,), 0.5),
            noise=noise,
        )
        assert output.loss.item() > 0.02, ratio


@pytest.mark.parametrize(
    ("consistency", "given", "used"),
    [(0.0, 1.0, 0.0), (0.0, 1.5, 1 / 3), (0.0, 2.0, 0.5), (0.0, 0.57, 0.57), (0.5, 1.5, 1.5), (1.0, 2.0, 2.0)],
)
def test_guidance_scale_is_mapped_at_ratio_0_only(consistency, given, used):
    loss = UCGMLoss(consistency_ratio=consistency, enhancement_ratio=given)
    assert loss.effective_enhancement_ratio == pytest.approx(used)


def test_mapped_guidance_scale_gives_the_target_of_the_ratio_it_maps_to():
    x, noise, t, labels = batch()
    targets = [
        UCGMLoss(enhancement_ratio=ratio)(
            ChannelNetwork(), x, {"y": labels}, {"y": NULL}, t=t, noise=noise, dropped=torch.zeros(6, dtype=torch.bool)
        ).target
        for ratio in (2.0, 0.5)
    ]
    assert torch.equal(*targets)


def test_without_a_teacher_the_student_enhances_its_own_target():
    x, noise, t, labels = batch()
    network = ChannelNetwork()
    for ratio in RATIOS:
        loss = UCGMLoss(consistency_ratio=ratio, enhancement_ratio=0.5)
        outputs = [
            loss(network, x, {"y": labels}, {"y": NULL}, teacher=teacher, t=t, noise=noise, dropped=labels == 0)
            for teacher in (None, network)
        ]
        assert torch.equal(outputs[0].target, outputs[1].target)


def test_slope_is_clamped():
    x, noise, t, labels = batch()
    loss = UCGMLoss(consistency_ratio=1.0, label_dropout=0.0)
    output = loss(lambda x_t, t: 100.0 * x_t, x, t=t, noise=noise)
    assert output.slope.abs().max() == 1.0
    weight = t * 4.0 / torch.sin(1.57 * t)
    expected = output.prediction + weight[:, None, None, None] * output.slope
    torch.testing.assert_close(output.target, expected)


# --- transports and ranks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", RATIOS)
def test_reversed_time_gives_the_same_loss_for_the_reversed_network(ratio):
    x, noise, t, labels = batch(dtype=torch.float64)
    settings = {
        "consistency_ratio": ratio,
        "enhancement_ratio": 0.6,
        "huber_c": 0.1,
        "cosine_term": True,
        "cosine_weighting": True,
    }
    dropped = labels == 1
    results = []
    for transport in ("linear", "relinear"):
        network = ChannelNetwork(dtype=torch.float64)

        def denoiser(x_t, t, y, network=network, transport=transport):
            return network(x_t, t, y) if transport == "linear" else -network(x_t, 1.0 - t, y)

        output = UCGMLoss(transport=transport, **settings)(
            denoiser, x, {"y": labels}, {"y": NULL}, t=t, noise=noise, dropped=dropped
        )
        output.loss.backward()
        results.append((output.loss.detach(), output.per_sample_loss, gradients(network)))
    # 1 - (1 - t) in float32 moves t by up to 6e-8; the difference quotient divides by 0.01.
    torch.testing.assert_close(*results, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("ratio", RATIOS)
def test_loss_does_not_depend_on_the_rank_that_holds_the_data(ratio):
    x, noise, t, labels = batch(shape=(3, 2, 4))
    settings = {"consistency_ratio": ratio, "enhancement_ratio": 0.6, "cosine_term": True, "cosine_weighting": True}
    forms = {
        "image": (1, lambda v: v),
        "video": (1, lambda v: v.reshape(6, 3, 2, 2, 2)),
        "audio": (1, lambda v: v.flatten(2)),
        "tokens": (-1, lambda v: v.flatten(2).transpose(1, 2)),
    }
    losses = {}
    for name, (channel_dim, form) in forms.items():
        network = ChannelNetwork(channel_dim=channel_dim)
        loss = UCGMLoss(channel_dim=channel_dim, **settings)
        output = loss(network, form(x), {"y": labels}, {"y": NULL}, t=t, noise=form(noise), dropped=labels == 1)
        output.loss.backward()
        losses[name] = (output.loss.detach(), output.per_sample_loss, gradients(network))
    for name in ("video", "audio", "tokens"):
        torch.testing.assert_close(
            losses[name], losses["image"], rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_split_batch_gives_the_same_losses_and_gradients(ratio):
    x, noise, t, labels = batch(8)
    dropped = torch.arange(8) % 3 == 0
    loss = UCGMLoss(
        consistency_ratio=ratio, enhancement_ratio=0.6, huber_c=0.5, cosine_term=True, cosine_weighting=True
    )

    def evaluate(network, rows):
        arguments = {"t": t[rows], "noise": noise[rows], "dropped": dropped[rows]}
        output = loss(network, x[rows], {"y": labels[rows]}, {"y": NULL}, **arguments)
        return output

    whole, split = ChannelNetwork(), ChannelNetwork()
    full = evaluate(whole, slice(0, 8))
    full.loss.backward()
    parts = [evaluate(split, slice(start, start + 2)) for start in range(0, 8, 2)]
    for part in parts:
        (part.loss / 4).backward()
    # Matrix products of other sizes round differently, which the difference quotient multiplies by up to 100.
    torch.testing.assert_close(
        torch.cat([part.per_sample_loss for part in parts]), full.per_sample_loss, rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(gradients(split), gradients(whole), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["flow_prediction", "v_prediction", "epsilon", "sample"])
def test_prediction_type_decides_the_target(prediction_type):
    x, noise, t, _ = batch()
    loss = UCGMLoss(transport="trigflow", prediction_type=prediction_type, label_dropout=0.0)
    target = loss(lambda x_t, t: x_t, x, t=t, noise=noise).target
    sine, cosine = torch.sin(1.57 * t)[:, None, None, None], torch.cos(1.57 * t)[:, None, None, None]
    expected = {"flow_prediction": noise - x, "v_prediction": cosine * noise - sine * x, "epsilon": noise, "sample": x}
    torch.testing.assert_close(target, expected[prediction_type])


def test_a_transport_object_serves_as_well_as_its_name():
    x, noise, t, labels = batch()
    losses = [
        UCGMLoss(transport=transport, consistency_ratio=1.0, label_dropout=0.0)(
            ChannelNetwork(), x, {"y": labels}, t=t, noise=noise
        ).loss
        for transport in ("trigflow", get_transport("trigflow"))
    ]
    assert torch.equal(*losses)


# --- gradient, distance and weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "enhancement", "calls"), [(0.0, 0.0, 1), (0.0, 0.5, 2), (0.5, 0.5, 2), (1.0, 0.5, 3)]
)
def test_only_the_student_prediction_carries_gradient(ratio, enhancement, calls, toy_weights):
    network = ToyNetwork(toy_weights)
    x, noise, t, labels = batch(shape=(2, 4, 4))
    loss = UCGMLoss(consistency_ratio=ratio, enhancement_ratio=enhancement)
    output = loss(network, x, {"y": labels}, {"y": NULL}, t=t, noise=noise, dropped=labels == 0)
    assert network.calls == [True] + [False] * (calls - 1)
    assert output.loss.requires_grad
    assert not any(getattr(output, name).requires_grad for name in ("per_sample_loss", "prediction", "target"))


@pytest.mark.parametrize("c", [0.0, 0.5])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_shows_in_the_loss(value, c):
    x, noise, t, _ = batch()
    output = UCGMLoss(huber_c=c, label_dropout=0.0)(lambda x_t, t: torch.full_like(x_t, value), x, t=t, noise=noise)
    assert not output.loss.isfinite()
    assert not output.per_sample_loss.isfinite().any()


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_cosine_term_is_the_mean_distance_over_the_channels(channel_dim):
    x, noise, t, _ = batch(shape=(3, 5))
    with_term, without = (
        UCGMLoss(cosine_term=term, channel_dim=channel_dim, label_dropout=0.0)(lambda x_t, t: x_t, x, t=t, noise=noise)
        for term in (True, False)
    )
    f, target = with_term.prediction, with_term.target
    dots = (f * target).sum(channel_dim) / (f.norm(dim=channel_dim) * target.norm(dim=channel_dim))
    expected = (1.0 - dots).mean(1)
    torch.testing.assert_close(with_term.per_sample_loss - without.per_sample_loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transport", ["linear", "relinear"])
def test_cosine_weighting_weighs_data_most_in_either_direction_of_time(transport):
    x, noise, t, _ = batch()
    loss = UCGMLoss(transport=transport, cosine_weighting=True, label_dropout=0.0)
    output = loss(lambda x_t, t: x_t, x, t=t, noise=noise)
    torch.testing.assert_close(output.loss, (output.per_sample_loss * torch.cos(1.57 * t)).mean())


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"consistency_ratio": 1.1}, r"`consistency_ratio` must be in \[0, 1\], got 1.1\."),
        ({"consistency_ratio": float("nan")}, r"`consistency_ratio` must be in \[0, 1\], got nan\."),
        ({"label_dropout": -0.1}, r"`label_dropout` must be in \[0, 1\], got -0.1\."),
        ({"huber_c": -1.0}, r"`huber_c` must be a number from 0 up, got -1.0\."),
        ({"huber_c": float("inf")}, r"`huber_c` must be a number from 0 up, got inf\."),
        ({"enhancement_ratio": float("nan")}, r"`enhancement_ratio` must be finite, got nan\."),
        ({"enhancement_range": (0.7, 0.2)}, r"`enhancement_range` must be two rising times, got \(0.7, 0.2\)\."),
        ({"enhancement_range": (0.7,)}, r"`enhancement_range` must be two rising times, got \(0.7,\)\."),
        (
            {"time_distribution": (1.0, 0.0, 1.0)},
            r"`time_distribution` must be three positive numbers, got \(1.0, 0.0, 1.0\)",
        ),
        ({"transport": "strait"}, r"`transport` must be one of \[.*'linear'.*\], got 'strait'"),
        ({"prediction_type": "velocity"}, r"`prediction_type` must be one of \[.*\], got 'velocity'"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        UCGMLoss(**settings)


def test_a_transport_that_determines_nothing_is_refused_at_once():
    linear = TRANSPORTS["linear"]
    degenerate = Transport(linear.alpha, linear.gamma, linear.alpha, linear.gamma)
    with pytest.raises(ValueError, match=r"D\(t\) = alpha gamma_hat - gamma alpha_hat must not vanish"):
        UCGMLoss(transport=degenerate)


def test_unknown_settings_and_changes_are_refused():
    with pytest.raises(TypeError, match="consistc_ratio"):
        UCGMLoss(consistc_ratio=1.0)
    with pytest.raises(FrozenInstanceError):
        UCGMLoss().huber_c = 1.0


def test_the_velocity_is_the_teachers_where_the_settings_say_so():
    """At equal times the target is what the teacher says of the point, without the noise of the sample."""
    loss = UCGMLoss(second_time="any", equal_share=1.0, label_dropout=0.0, velocity="teacher", first_step=0.01)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2, 3, 3, generator=generator)

    def teacher(x_t, t, target_time):
        assert torch.equal(t, target_time)
        return 0.3 * x_t + t.reshape(-1, 1, 1, 1)

    output = loss(lambda x_t, t, target_time: torch.zeros_like(x_t), x, teacher=teacher, generator=generator)
    t = output.t.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(output.target, 0.3 * (t * output.noise + (1.0 - t) * x) + t, rtol=1e-4, atol=1e-5)
