"""What the loss costs: how often a network is called, in which batches, and that nothing waits for the device."""

import pytest
import torch
from device_readings import NoReading
from loss_calls import Counted, inputs

from diffusers_ucgm import UCGMLoss
from diffusers_ucgm.transports import TRANSPORTS, get_transport


def evaluate(loss, network, teacher=None, **given):
    x, condition, null = inputs()
    given = {"generator": torch.Generator().manual_seed(1), **given}
    return loss(network, x, condition, null, teacher=teacher, **given)


# The table of `diffusers_ucgm.loss`: calls of the student with a gradient, without one, and of the teacher.
CALLS = [
    ({"consistency_ratio": 0.0}, (1, 0, 0)),
    ({"consistency_ratio": 0.5}, (1, 1, 0)),
    ({"consistency_ratio": 1.0}, (1, 2, 0)),
    ({"consistency_ratio": 1.0, "derivative": "forward"}, (1, 1, 0)),
    ({"consistency_ratio": 0.0, "enhancement_ratio": 0.5}, (1, 0, 1)),
    ({"consistency_ratio": 0.5, "enhancement_ratio": 1.3}, (1, 1, 1)),
    ({"consistency_ratio": 1.0, "enhancement_ratio": 1.3}, (1, 2, 1)),
]


@pytest.mark.parametrize(("settings", "expected"), CALLS)
@pytest.mark.parametrize("batched", [False, True])
def test_networks_are_called_as_often_as_the_table_says(settings, expected, batched):
    student, teacher = Counted(), Counted()
    evaluate(UCGMLoss(**settings, batched_calls=batched), student, teacher)
    with_gradient, without, taught = expected
    if batched and without == 2:
        assert student.batches == [(4, True), (8, False)]
    else:
        assert student.batches == [(4, True)] * with_gradient + [(4, False)] * without
    assert teacher.batches == [(4, False)] * taught


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 2), (0.5, 2), (1.0, 3)])
def test_a_student_that_teaches_itself_is_not_asked_twice(ratio, expected):
    network = Counted()
    loss = UCGMLoss(consistency_ratio=ratio, enhancement_ratio=0.6)
    alone = evaluate(loss, network)
    assert len(network.batches) == expected
    # The same as with a teacher of the same weights.
    torch.testing.assert_close(alone.target, evaluate(loss, network, Counted()).target, rtol=0, atol=0)


@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_one_doubled_call_is_two_calls(transport, ratio):
    outputs = [
        evaluate(UCGMLoss(transport, consistency_ratio=ratio, enhancement_ratio=1.3, batched_calls=batched), Counted())
        for batched in (False, True)
    ]
    torch.testing.assert_close(outputs[0].target, outputs[1].target, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-9, atol=1e-9)


# --- ends of the path ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prediction_type", "end"), [("epsilon", 1.0), ("sample", 0.0)])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_predictions_that_do_not_tell_the_data_at_an_end_have_a_finite_loss_there(prediction_type, end, ratio):
    network = Counted()
    loss = UCGMLoss(prediction_type=prediction_type, consistency_ratio=ratio, enhancement_ratio=0.5, label_dropout=0.0)
    output = evaluate(loss, network, t=torch.full((4,), end, dtype=torch.float64))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert output.t.tolist() == pytest.approx([abs(end - 1e-4)] * 4)


@pytest.mark.parametrize("name", sorted(TRANSPORTS))
def test_other_times_are_left_as_they_are(name):
    if min(abs(float(get_transport(name).determinant(torch.tensor(t)))) for t in (0.0, 1.0)) < 1e-6:
        pytest.skip("an end is singular")
    t = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    assert torch.equal(evaluate(UCGMLoss(name), Counted(), t=t).t, t)


# --- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [settings for settings, _ in CALLS])
@pytest.mark.parametrize("batched", [False, True])
def test_no_value_is_read_from_the_device(settings, batched):
    network, teacher = (Counted().to("meta") for _ in range(2))
    x, condition, null = inputs()
    loss = UCGMLoss(**settings, batched_calls=batched)
    with NoReading():
        output = loss(
            network,
            x.to("meta"),
            {"label": condition["label"].to("meta")},
            null,
            teacher=teacher,
            t=torch.rand(4),
            noise=torch.randn(x.shape),
            dropped=torch.tensor([True, False, False, False]),
            generator=torch.Generator().manual_seed(0),
        )
        output.loss.backward()
    assert output.loss.device.type == "meta"
