"""A teacher under classifier-free guidance: its answers, what it asks, and a few-step model that learns them."""

import pytest
import torch
from channel_networks import NULL, ChannelNetwork, batch

from diffusers_ucgm.guided_teacher import guided_teacher
from diffusers_ucgm.loss import UCGMLoss
from diffusers_ucgm.teacher import Teacher


NO_LABEL = {"y": torch.tensor([NULL])}


def asked(calls):
    def teacher(x_t, t, **condition):
        calls.append(condition)
        return x_t * condition["y"].view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1)

    return teacher


@pytest.mark.parametrize("scale", [0.0, 1.5, 3.0])
def test_the_answer_is_moved_away_from_that_without_a_condition(scale):
    x, _, t, labels = batch()
    network = ChannelNetwork()
    plain, without = network(x, t, y=labels), network(x, t, y=torch.full_like(labels, NULL))
    guided = guided_teacher(network, NO_LABEL, scale)(x, t, y=labels)
    torch.testing.assert_close(guided, without + scale * (plain - without))


def test_rows_without_a_condition_are_not_moved():
    x, _, t, labels = batch()
    network = ChannelNetwork()
    labels[::2] = NULL
    guided = guided_teacher(network, NO_LABEL, 4.0)(x, t, y=labels)
    torch.testing.assert_close(guided[::2], network(x, t, y=labels)[::2])


def test_keywords_without_a_null_value_are_the_same_in_both_calls():
    x, _, t, labels = batch()
    calls = []
    guided_teacher(asked(calls), NO_LABEL, 2.0)(x, t, y=labels, target_time=t / 2)
    assert [set(each) for each in calls] == [{"y", "target_time"}] * 2
    torch.testing.assert_close(calls[0]["target_time"], calls[1]["target_time"])
    assert {tuple(each["y"].tolist()) for each in calls} == {tuple(labels.tolist()), (NULL,) * len(labels)}


def test_guidance_needs_a_null_condition_that_fits():
    x, _, t, labels = batch()
    with pytest.raises(ValueError, match=r"`null_condition` must be given for a teacher .* of 2\.0, got \{\}"):
        guided_teacher(ChannelNetwork(), {}, 2.0)
    with pytest.raises(ValueError, match="`null_condition` must have the keywords of `condition`"):
        guided_teacher(ChannelNetwork(), {"z": NULL}, 2.0)(x, t, y=labels)
    with pytest.raises(ValueError, match="`guidance_scale` must be a finite number from 0 up"):
        Teacher(torch.nn.Linear(2, 2), 1.0, guidance_scale=-1.0)


def test_the_loss_learns_the_guided_answer():
    # At an enhancement ratio of 1 the target's data are the teacher's estimate: a student that gives the guided answer
    # has another loss than one that gives the plain one.
    x, noise, t, labels = batch()
    loss = UCGMLoss(consistency_ratio=0.5, enhancement_ratio=1.0, enhancement_range=(0.0, 1.0), label_dropout=0.0)
    network = ChannelNetwork()
    targets = [
        loss(network, x, {"y": labels}, NO_LABEL, teacher=guided_teacher(network, NO_LABEL, scale), t=t, noise=noise)
        for scale in (1.0, 3.0)
    ]
    plain = loss(network, x, {"y": labels}, NO_LABEL, teacher=network, t=t, noise=noise)
    torch.testing.assert_close(targets[0].target, plain.target)
    assert not torch.allclose(targets[1].target, plain.target, atol=1e-2)
