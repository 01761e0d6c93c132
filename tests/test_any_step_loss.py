"""The loss of networks of two times: presets on exact flow maps, calls, draws, and what holds for any network."""

import math
from dataclasses import replace

import pytest
import torch
from channel_networks import NULL, ChannelNetwork, batch
from device_readings import NoReading
from flow_maps import GaussianFlow
from torch import nn

from diffusers_ucgm import UCGMLoss, get_transport
from diffusers_ucgm.loss_settings import LOSS_PRESETS
from diffusers_ucgm.transports import TRANSPORTS


NAMES = ["linear", "relinear", "trigflow", "triglinear", "edm", "random"]
ANY = [name for name in LOSS_PRESETS if name != "ucgm"]


class TwoTimes(ChannelNetwork):
    """A channel network that is told the target time, and notes it."""

    def __init__(self, **given):
        super().__init__(**given)
        self.targets = []
        self.has_gradient = []

    def forward(self, x, t, y=None, *, target_time):
        self.targets.append(target_time.clone())
        self.has_gradient.append(torch.is_grad_enabled())
        return super().forward(x, t, y) + torch.cos(target_time).to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def networks(preset, network):
    return {"averaged": network} if LOSS_PRESETS[preset].get("chain_network") == "ema" else {}


def preset(name, **given):
    return UCGMLoss(**{**LOSS_PRESETS[name], "label_dropout": 0.0, **given})


# --- exact flow maps -------------------------------------------------------------------------------------------------


T = torch.tensor([0.9, 0.7, 0.5, 0.5, 1.0, 0.6], dtype=torch.float64)
R = torch.tensor([0.0, 0.3, 0.4, 0.5, 0.0, 0.0], dtype=torch.float64)
# Times are told in float32. A difference of 0.01 divides their rounding, which EDM's coefficients multiply by 10.
BIAS = {"meanflow": 1e-5, "shortcut": 2e-5, "rcgm": 0.02, "soflow": 0.05}


@pytest.mark.parametrize("transport", NAMES)
@pytest.mark.parametrize("name", ANY)
def test_the_exact_flow_map_is_the_solution_of_every_preset(name, transport):
    flow = GaussianFlow(get_transport(transport))
    x_t = torch.linspace(-2.0, 2.0, 6, dtype=torch.float64)[:, None]
    x, z = flow.ends(x_t, T)
    output = preset(name, transport=transport)(flow, x, t=T, target_time=R, noise=z, **networks(name, flow))
    bias = (output.target - output.prediction).abs() / x_t.abs()
    assert bias.max() < BIAS[name] * (4.0 if transport == "edm" else 1.0)
    assert torch.equal(output.target_time, R)
    # The target at r = t is the velocity of the data.
    torch.testing.assert_close(output.target[3], flow.transport.target(x, z, T)[3], rtol=0, atol=0)


@pytest.mark.parametrize("transport", NAMES)
def test_the_one_step_map_is_the_solution_of_ucgm(transport):
    flow = GaussianFlow(get_transport(transport))
    x_t = torch.linspace(-0.2, 0.2, 6, dtype=torch.float64)[:, None]
    t = torch.tensor([0.9, 0.7, 0.5, 0.4, 0.3, 0.6], dtype=torch.float64)
    x, z = flow.ends(x_t, t)

    def one_step(x_t, t):
        return flow(x_t, t, flow.transport.model_time(torch.zeros_like(t)))

    output = preset("ucgm", transport=transport, derivative="forward")(one_step, x, t=t, noise=z)
    # EDM's path ends with a little noise, which the estimate of the data leaves out.
    assert (output.target - output.prediction).abs().max() < (1e-2 if transport == "edm" else 1e-6)


@pytest.mark.parametrize("transport", NAMES)
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_a_target_at_the_data_has_the_direction_of_ucgms(transport, ratio):
    # UCGM's lambda is a first step of (1 - lambda) t at r = 0.
    generator = torch.Generator().manual_seed(0)
    x, z = 0.02 * torch.randn(2, 6, 3, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.2, 0.9, 6, dtype=torch.float64)
    network = TwoTimes(dtype=torch.float64)

    def data_bound(x_t, t):
        target = torch.full_like(t, 1.0 if transport == "relinear" else 0.0)
        return 0.05 * network(x_t, t, target_time=target)

    def two_times(x_t, t, *, target_time):
        return 0.05 * network(x_t, t, target_time=target_time)

    ucgm = UCGMLoss(transport, consistency_ratio=ratio, label_dropout=0.0)(data_bound, x, t=t, noise=z)
    given = {"second_time": "any", "first_step": 1.0 - ratio, "first_step_unit": "gap"}
    ours = UCGMLoss(transport, consistency_ratio=1.0, label_dropout=0.0, **given)(
        two_times, x, t=t, target_time=0.0 * t, noise=z
    )
    assert (ucgm.slope.abs() < 1.0).all()
    steps = [(output.target - output.prediction).flatten(1) for output in (ucgm, ours)]
    cosine = torch.cosine_similarity(*steps)
    # EDM's path ends with a little noise, which the estimate of the data leaves out.
    tolerance = 1e-3 if transport == "edm" else 1e-6
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=tolerance)


@pytest.mark.parametrize("transport", NAMES)
@pytest.mark.parametrize("name", ANY)
def test_loss_and_gradient_are_finite_at_the_ends_and_where_both_times_are_one(name, transport):
    x, noise, _, labels = batch(8)
    t = torch.tensor([0.0, 1e-8, 1e-3, 0.5, 0.5, 1.0, 1.0, 1.0])
    r = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.49999, 1.0, 0.0, 0.995])
    network = TwoTimes()
    loss = preset(name, transport=transport, enhancement_ratio=0.5)
    output = loss(network, x, {"y": labels}, {"y": NULL}, t=t, target_time=r, noise=noise, **networks(name, network))
    output.loss.backward()
    assert output.target.isfinite().all()
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize("name", ANY)
def test_predictions_that_do_not_tell_the_data_at_an_end_have_a_finite_loss_there(name, prediction_type):
    x, noise, *_ = batch(4)
    t = torch.tensor([0.0, 1.0, 1.0, 0.5])
    network = TwoTimes()
    output = preset(name, prediction_type=prediction_type)(
        network, x, t=t, target_time=torch.tensor([0.0, 0.0, 1.0, 0.0]), noise=noise, **networks(name, network)
    )
    assert output.target.isfinite().all()


# --- calls -----------------------------------------------------------------------------------------------------------


# The table of `diffusers_ucgm.loss`: the student's calls with and without gradient, the average's and the teacher's.
CALLS = [
    ({}, (1, 1, 0, 0)),
    ({"chain_order": 3}, (1, 3, 0, 0)),
    ({"chain_order": 2, "chain_network": "ema"}, (1, 0, 2, 0)),
    ({"chain_order": 2, "chain_network": "teacher"}, (1, 0, 0, 2)),
    ({"chain_order": 2, "form": "integral", "first_step": 0.0}, (1, 2, 0, 0)),
    ({"derivative": "forward", "first_step": 0.0}, (1, 1, 0, 0)),
    ({"enhancement_ratio": 0.5}, (1, 1, 0, 2)),
    ({"enhancement_ratio": 0.5, "derivative": "forward", "first_step": 0.0}, (1, 1, 0, 2)),
]
# Two rows have a gap, three are labelled and inside of the range.
GIVEN = {
    "t": torch.tensor([0.5, 0.6, 0.7, 0.9, 0.3]),
    "target_time": torch.tensor([0.5, 0.1, 0.7, 0.0, 0.3]),
    "dropped": torch.tensor([False, False, True, False, False]),
}


def called(settings, has_teacher=True, **given):
    x, noise, _, labels = batch(5)
    student, averaged, teacher = TwoTimes(), TwoTimes(seed=1), TwoTimes(seed=2)
    loss = UCGMLoss(second_time="any", consistency_ratio=1.0, **settings)
    averages = averaged if loss.chain_network == "ema" else None
    teachers = teacher if has_teacher else None
    arguments = {**GIVEN, "noise": noise, **given}
    output = loss(student, x, {"y": labels}, {"y": NULL}, averaged=averages, teacher=teachers, **arguments)
    return output, student, averaged, teacher


@pytest.mark.parametrize(("settings", "expected"), CALLS)
def test_networks_are_called_as_often_as_the_table_says(settings, expected):
    output, student, averaged, teacher = called(settings)
    assert student.has_gradient == [True] + [False] * expected[1]
    assert averaged.has_gradient == [False] * expected[2]
    assert teacher.has_gradient == [False] * expected[3]
    assert output.loss.requires_grad
    assert not any(getattr(output, name).requires_grad for name in ("prediction", "target", "target_time"))


@pytest.mark.parametrize(("settings", "expected"), CALLS)
@pytest.mark.parametrize("batched", [False, True])
def test_partial_calls_are_for_the_used_rows_and_change_nothing(settings, expected, batched):
    settings = {**settings, "batched_calls": batched}
    whole, *_ = called(settings)
    part, student, averaged, teacher = called({**settings, "partial_calls": True})
    torch.testing.assert_close(part.target, whole.target, rtol=1e-5, atol=1e-4)
    assert [len(call[1]) for call in student.calls] == [5] + [2] * expected[1]
    assert [len(call[1]) for call in averaged.calls] == [2] * expected[2]
    guided = [6] if batched else [3, 3]
    is_guided = "enhancement_ratio" in settings
    assert [len(call[1]) for call in teacher.calls] == (guided if is_guided else [2] * expected[3])


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_partial_calls_of_one_time_leave_out_the_teachers_unused_rows(ratio):
    x, noise, _, labels = batch(5)
    targets = []
    for partial in (False, True):
        teacher = ChannelNetwork(seed=2)
        loss = UCGMLoss(consistency_ratio=ratio, enhancement_ratio=0.5, partial_calls=partial)
        output = loss(
            ChannelNetwork(),
            x,
            {"y": labels},
            {"y": NULL},
            teacher=teacher,
            t=GIVEN["t"],
            noise=noise,
            dropped=GIVEN["dropped"],
        )
        targets.append(output.target)
        # At ratio 0 the row outside of the range needs no unconditional estimate, above 0 the dropped one none at all.
        assert len(teacher.calls[0][1]) == (4 if partial else 5)
    torch.testing.assert_close(*targets, rtol=1e-4, atol=1e-4)


def test_a_call_that_no_row_needs_is_made_for_one():
    x, noise, *_ = batch(3)
    network = TwoTimes()
    t = torch.tensor([0.2, 0.5, 0.8])
    output = UCGMLoss(second_time="any", partial_calls=True, label_dropout=0.0)(
        network, x, t=t, target_time=t, noise=noise
    )
    assert [len(call[1]) for call in network.calls] == [3, 1]
    torch.testing.assert_close(output.target, noise - x)


def test_the_amplified_form_takes_one_call_fewer_than_the_difference_at_ratio_1():
    x, *_ = batch()
    published, ours = ChannelNetwork(), TwoTimes()
    UCGMLoss(consistency_ratio=1.0, label_dropout=0.0)(published, x)
    UCGMLoss(second_time="any", equal_share=0.0, end_share=1.0, label_dropout=0.0)(ours, x)
    assert (len(published.calls), len(ours.calls)) == (3, 2)


@pytest.mark.parametrize("settings", [settings for settings, _ in CALLS])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_no_value_is_read_from_the_device(settings, partial, place):
    x, noise, t, labels = batch(5)
    network = TwoTimes().to("meta")
    loss = UCGMLoss(second_time="any", consistency_ratio=1.0, **settings, partial_calls=partial)
    with NoReading():
        output = loss(
            network,
            x.to("meta"),
            {"y": labels.to("meta")},
            {"y": NULL},
            averaged=network if loss.chain_network == "ema" else None,
            teacher=network,
            t=t.to(place),
            noise=noise.to(place),
            generator=torch.Generator().manual_seed(0),
        )
        output.loss.backward()
    assert output.loss.device.type == "meta"
    rows = {len(call[1]) for call in network.calls[1:]}
    assert rows == {5} if place == "meta" or not partial else 5 not in rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("transport", ["linear", "relinear"])
def test_both_times_are_float32_and_the_networks_own(transport, dtype):
    t, r = torch.tensor([0.3, 0.701, 1.0]), torch.tensor([0.3, 0.403, 0.0])
    x, noise, *_ = batch(3, dtype=dtype)
    network = TwoTimes(dtype=dtype)
    loss = UCGMLoss(transport, second_time="any", chain_order=2, label_dropout=0.0)
    output = loss(network, x, t=t, target_time=r, noise=noise)
    assert output.loss.dtype == torch.promote_types(dtype, torch.float32)
    m = torch.maximum(t - 0.01, r)
    expected = [(t, r), (m, (m + r) / 2), ((m + r) / 2, r)]
    for (x_t, start, _), stop, (t_own, r_own) in zip(network.calls, network.targets, expected, strict=True):
        assert x_t.dtype == dtype
        for found, own in ((start, t_own), (stop, r_own)):
            assert found.dtype == torch.float32
            assert found.min() >= 0.0
            assert found.max() <= 1.0
            torch.testing.assert_close(found, 1.0 - own if transport == "relinear" else own, rtol=0, atol=1e-6)


def test_a_network_of_one_time_is_called_without_a_target_time():
    x, *_ = batch()
    seen = []

    def denoiser(x_t, t, **given):
        seen.append(set(given))
        return x_t

    for ratio in (0.0, 0.5, 1.0):
        UCGMLoss(consistency_ratio=ratio, enhancement_ratio=0.5, label_dropout=0.0)(denoiser, x)
    assert seen == [set()] * 7


class Masks(nn.Module):
    """Dropout that keeps the masks it drew."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(()))
        self.masks = []

    def forward(self, x, t, target_time):
        mask = self.dropout(torch.ones_like(x))
        self.masks.append(mask)
        return self.scale * mask * x


@pytest.mark.parametrize("name", ["rcgm", "shortcut", "soflow"])
def test_all_calls_of_a_step_share_the_dropout(name):
    x, *_ = batch()
    network = Masks()
    preset(name, enhancement_ratio=0.5)(
        network, x, generator=torch.Generator().manual_seed(0), **networks(name, network)
    )
    assert len(network.masks) > 3
    assert all(torch.equal(mask, network.masks[0]) for mask in network.masks)


def test_the_chain_is_asked_of_the_network_that_the_setting_names():
    found = {}
    for name in ("student", "ema", "teacher"):
        output, *chain = called({"chain_network": name})
        found[name] = output.target
        used = dict(zip(("student", "ema", "teacher"), chain, strict=True))
        assert len(used[name].calls) == (2 if name == "student" else 1)
    rows = GIVEN["target_time"] < GIVEN["t"]
    assert not torch.equal(found["student"][rows], found["ema"][rows])
    assert not torch.equal(found["ema"][rows], found["teacher"][rows])
    assert torch.equal(found["student"][~rows], found["ema"][~rows])


# --- guidance --------------------------------------------------------------------------------------------------------


def test_labelled_samples_inside_are_guided_at_every_gap_and_dropped_ones_have_the_plain_velocity():
    x, noise, _, labels = batch(5)
    plain, *_ = called({"first_step": 1.0, "first_step_unit": "gap"})
    guided, _, _, teacher = called({"first_step": 1.0, "first_step_unit": "gap", "enhancement_ratio": 0.5})
    # A first step over the whole gap leaves the velocity as the target.
    torch.testing.assert_close(plain.target, noise - x)
    dropped, t = GIVEN["dropped"], GIVEN["t"]
    x_t = t[:, None, None, None] * noise + (1 - t)[:, None, None, None] * x
    mixed = torch.where(dropped, NULL, labels)
    with torch.no_grad():
        pair = [teacher(x_t, t, y, target_time=t) for y in (mixed, torch.full_like(labels, NULL))]
    is_guided = torch.tensor([True, True, False, False, True])
    expected = noise - x + 0.5 * (pair[0] - pair[1]) * is_guided[:, None, None, None]
    torch.testing.assert_close(guided.target, expected, rtol=1e-4, atol=1e-5)


def test_guidance_asks_the_teacher_then_the_chains_network():
    for settings, counts in (({"chain_network": "ema"}, (0, 3, 0)), ({}, (3, 0, 0))):
        _, *found = called({**settings, "enhancement_ratio": 0.5}, has_teacher=False)
        # The student's first call has the gradient.
        assert tuple(network.has_gradient.count(False) for network in found) == counts


def test_a_guidance_scale_is_mapped_as_for_many_steps():
    loss = UCGMLoss(second_time="any", consistency_ratio=1.0, enhancement_ratio=2.0)
    assert loss.effective_enhancement_ratio == 0.5
    assert replace(loss, enhancement_ratio=0.8).effective_enhancement_ratio == 0.8


def test_guidance_needs_a_null_condition():
    x, _, _, labels = batch()
    loss = UCGMLoss(second_time="any", consistency_ratio=1.0, enhancement_ratio=0.5, label_dropout=0.0)
    with pytest.raises(ValueError, match="`null_condition` must be given"):
        loss(TwoTimes(), x, {"y": labels})


# --- distance and weight ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalisation", ["none", "huber", "norm", "adaptive"])
def test_prediction_minus_target_is_the_raw_residual(normalisation):
    output, *_ = called({"normalisation": normalisation})
    plain, *_ = called({})
    assert torch.equal(output.target, plain.target)
    torch.testing.assert_close(
        output.target, get_transport("linear").target(batch(5)[0], output.noise, output.t) - output.correction
    )
    expected = {
        "none": lambda g: g.square().mean(1),
        "huber": lambda g: g.square().mean(1).sqrt(),
        "norm": lambda g: (g / (g.norm(dim=1, keepdim=True) + 0.1)).square().mean(1),
        "adaptive": lambda g: g.square().sum(1) / (g.square().sum(1) + 0.01),
    }[normalisation]((output.prediction - output.target).flatten(1))
    torch.testing.assert_close(output.per_sample_loss, expected)


def test_the_gap_weighs_samples():
    plain, *_ = called({})
    weighed, *_ = called({"time_weight": "gap"})
    gap = GIVEN["t"] - GIVEN["target_time"]
    weight = torch.tan((1.0 - gap) * math.pi / 2.5) + 1.0
    torch.testing.assert_close(weighed.loss, (plain.per_sample_loss * weight).mean())
    both, *_ = called({"time_weight": "gap", "cosine_weighting": True})
    torch.testing.assert_close(both.loss, (plain.per_sample_loss * weight * torch.cos(1.57 * GIVEN["t"])).mean())


# --- draws and inputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ANY)
def test_generator_decides_everything_and_global_state_nothing(name):
    x, _, _, labels = batch()
    network = TwoTimes()

    def evaluate(seed):
        generator = torch.Generator().manual_seed(seed)
        loss = preset(name, enhancement_ratio=0.5, label_dropout=0.5)
        return loss(network, x, {"y": labels}, {"y": NULL}, generator=generator, **networks(name, network))

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = evaluate(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    again, other = evaluate(5), evaluate(6)
    for field in ("loss", "per_sample_loss", "prediction", "target", "t", "target_time", "noise", "dropped"):
        assert torch.equal(getattr(first, field), getattr(again, field)), field
    assert not torch.equal(first.target_time, other.target_time)
    assert (first.target_time <= first.t).all()


@pytest.mark.parametrize("name", ANY)
def test_inputs_are_unchanged_and_need_not_be_writable(name):
    x, noise, t, labels = batch()
    inputs = {
        "x": x[:1].expand_as(x),
        "noise": noise[:1].expand_as(noise),
        "t": t[2:3].expand(6),
        "target_time": torch.tensor([0.1]).expand(6),
        "dropped": torch.tensor([True, False] * 3),
    }
    before = {key: value.clone() for key, value in inputs.items()}
    network = TwoTimes()
    loss = preset(name, enhancement_ratio=0.5, label_dropout=0.1)
    found = loss(
        network,
        condition={"y": labels[:1].expand(6)},
        null_condition={"y": NULL},
        generator=torch.Generator().manual_seed(0),
        **inputs,
        **networks(name, network),
    )
    found.loss.backward()
    for key, value in inputs.items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("transport", ["linear", "trigflow"])
def test_a_split_batch_gives_the_same_losses_and_gradients(name, transport):
    x, noise, t, labels = batch(8, dtype=torch.float64)
    r = t * torch.tensor([0.0, 1.0, 0.5, 0.9] * 2)
    dropped = torch.arange(8) % 3 == 0
    loss = preset(name, transport=transport, enhancement_ratio=0.5)

    def evaluate(network, rows):
        given = {"t": t[rows], "target_time": r[rows], "noise": noise[rows], "dropped": dropped[rows]}
        return loss(network, x[rows], {"y": labels[rows]}, {"y": NULL}, **given, **networks(name, network))

    whole, split = (TwoTimes(dtype=torch.float64) for _ in range(2))
    full = evaluate(whole, slice(0, 8))
    full.loss.backward()
    parts = [evaluate(split, slice(start, start + 2)) for start in range(0, 8, 2)]
    for part in parts:
        (part.loss / 4).backward()
    torch.testing.assert_close(torch.cat([part.per_sample_loss for part in parts]), full.per_sample_loss)
    torch.testing.assert_close(split.mix.grad, whole.mix.grad)


@pytest.mark.parametrize("name", ANY)
def test_latents_of_half_precision_have_the_loss_of_float32(name):
    x, noise, t, labels = batch(6)
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        network = TwoTimes()

        def denoiser(x_t, t, y, *, target_time, network=network):
            return network(x_t.float(), t, y, target_time=target_time)

        output = preset(name)(
            denoiser,
            x.bfloat16().to(dtype),
            {"y": labels},
            t=t,
            target_time=0.3 * t,
            noise=noise.bfloat16().to(dtype),
            **networks(name, denoiser),
        )
        assert output.target.dtype == torch.float32
        losses.append(output.loss.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.15, atol=0)


@pytest.mark.parametrize("name", ANY)
def test_reversed_time_gives_the_same_loss_for_the_reversed_network(name):
    x, noise, t, labels = batch(dtype=torch.float64)
    losses = []
    for transport in ("linear", "relinear"):
        network = TwoTimes(dtype=torch.float64)

        def denoiser(x_t, t, y, *, target_time, network=network, transport=transport):
            if transport == "linear":
                return network(x_t, t, y, target_time=target_time)
            return -network(x_t, 1.0 - t, y, target_time=1.0 - target_time)

        loss = preset(name, transport=transport, enhancement_ratio=0.5)
        given = {"t": t, "target_time": 0.4 * t, "noise": noise, "dropped": labels == 1}
        losses.append(loss(denoiser, x, {"y": labels}, {"y": NULL}, **given, **networks(name, denoiser)).loss)
    torch.testing.assert_close(*losses, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_ratio_0_learns_the_velocity_alone(ratio):
    x, *_ = batch(64)
    loss = UCGMLoss(second_time="any", consistency_ratio=ratio, label_dropout=0.0)
    output = loss(TwoTimes(), x, generator=torch.Generator().manual_seed(0))
    share = (output.target_time == output.t).float().mean().item()
    assert share == 1.0 if ratio == 0.0 else share == pytest.approx(0.25, abs=0.2)
    assert (output.correction[output.target_time == output.t] == 0.0).all()


def test_the_other_draws_are_those_of_one_time():
    x, _, _, labels = batch()
    one = UCGMLoss()(ChannelNetwork(), x, {"y": labels}, {"y": NULL}, generator=torch.Generator().manual_seed(0))
    two = UCGMLoss(second_time="any")(
        TwoTimes(), x, {"y": labels}, {"y": NULL}, generator=torch.Generator().manual_seed(0)
    )
    for name in ("t", "noise", "dropped"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert one.target_time is None
    assert one.correction is None
    assert two.slope is None


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({}, {"target_time": torch.zeros(6), "t": None}, "`target_time` must be given with `t` and .*, got no `t`"),
        ({"second_time": "none"}, {"target_time": torch.zeros(6)}, "`target_time` must be given with .*, got 'none'"),
        ({}, {"target_time": torch.ones(6)}, "`target_time` must have the shape of `t`, .* values from 0 to `t`, got"),
        ({}, {"target_time": torch.full((6,), -0.1)}, "`target_time` must have the shape of `t`, .* from 0 to `t`"),
        ({}, {"target_time": torch.full((6,), math.nan)}, "`target_time` must have the shape of `t`, .* from 0 to"),
        (
            {},
            {"target_time": torch.zeros(5)},
            r"`target_time` must have the shape of `t`, \(6,\), .* \(5,\)",
        ),
        ({}, {"target_time": 0.5}, "`target_time` must be a tensor, or None, got 0.5"),
        ({"chain_network": "ema"}, {}, "`averaged` must be given with `chain_network='ema'`"),
        ({"chain_network": "teacher"}, {}, "`teacher` must be given with `chain_network='teacher'`"),
        ({"second_time": "none"}, {"averaged": TwoTimes()}, "`averaged` must be given with `chain_network='ema'` and"),
    ],
)
def test_bad_arguments_are_refused(settings, given, message):
    x, _, t, _ = batch()
    with pytest.raises(ValueError, match=message):
        UCGMLoss(**{"second_time": "any", "label_dropout": 0.0, **settings})(TwoTimes(), x, **{"t": t, **given})


@pytest.mark.parametrize("name", sorted(TRANSPORTS))
@pytest.mark.parametrize("rank", [2, 3, 5])
def test_data_of_any_rank_is_taken(name, rank):
    x = torch.randn(4, *(3,) * (rank - 1), generator=torch.Generator().manual_seed(0))
    for each in ANY:
        network = TwoTimes()
        output = preset(each, transport=name)(
            network, x, generator=torch.Generator().manual_seed(0), **networks(each, network)
        )
        assert output.target.shape == x.shape
        assert output.loss.isfinite()
