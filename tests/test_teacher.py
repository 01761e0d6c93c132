"""The loss's teacher: averaging with warm-up, frozen, or the student itself."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from diffusers_ucgm.teacher import Teacher


def network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def drift(model, seed):
    """Move a model's weights and buffers, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
        model[1].running_mean += 1.0


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model, expected):
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0.0, atol=0.0)


def test_decay_warms_up_by_the_published_law():
    student = network()
    teacher = Teacher(student, 0.99)
    decays = [teacher.decay]
    for _ in range(4):
        teacher.update(student)
        decays.append(teacher.decay)
    # decay += (1 - decay) (0.99 - decay) / 2, by hand.
    expected = [0.0, 0.495, 0.6199875, 0.6902922, 0.7367031]
    assert decays == pytest.approx(expected, abs=1e-6)
    for _ in range(2000):
        teacher.update(student)
    assert teacher.decay == pytest.approx(0.99, abs=1e-3)
    assert teacher.decay <= 0.99


def test_first_update_copies_the_student_and_the_second_averages():
    student = network()
    teacher = Teacher(student, 0.9)
    drift(student, 1)
    teacher.update(student)
    first = state(student)
    assert_same(teacher.model, first)
    drift(student, 2)
    teacher.update(student)
    weight = "0.weight"
    expected = 0.45 * first[weight] + 0.55 * student.state_dict()[weight]
    torch.testing.assert_close(teacher.model.state_dict()[weight], expected)


def test_buffers_are_copied_not_averaged():
    student = network()
    teacher = Teacher(student, 0.9)
    for seed in range(3):
        drift(student, seed)
        student[1].num_batches_tracked += 1
        teacher.update(student)
    assert torch.equal(teacher.model[1].running_mean, student[1].running_mean)
    assert teacher.model[1].num_batches_tracked == 3


def test_frozen_teacher_never_changes():
    student = network()
    teacher = Teacher(student, 1.0)
    before = state(student)
    for seed in range(5):
        drift(student, seed)
        teacher.update(student)
    assert_same(teacher.model, before)
    assert not torch.equal(student[0].weight, teacher.model[0].weight)


def test_self_teacher_is_the_student():
    student = network()
    teacher = Teacher(student, 0.0)
    assert teacher.model is student
    before = state(student)
    teacher.update(student)
    assert_same(student, before)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert teacher.state_dict()[0] == {}


@pytest.mark.parametrize("teacher_decay", [0.9, 1.0])
def test_copied_teacher_asks_for_no_gradient_and_shares_no_memory(teacher_decay):
    student = network()
    teacher = Teacher(student, teacher_decay)
    teacher.update(student)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    mine = {value.data_ptr() for value in teacher.model.state_dict().values()}
    theirs = {value.data_ptr() for value in student.state_dict().values()}
    assert not mine & theirs


@pytest.mark.parametrize("teacher_decay", [0.9, 1.0])
def test_state_round_trip_resumes_weights_and_warm_up(teacher_decay):
    student = network()
    teacher = Teacher(student, teacher_decay)
    for seed in range(3):
        drift(student, seed)
        teacher.update(student)
    tensors, values = teacher.state_dict()
    tensors = {name: value.clone() for name, value in tensors.items()}
    resumed = Teacher(student, teacher_decay)
    resumed.load_state_dict(tensors, values)
    assert resumed.decay == teacher.decay
    for seed in range(3, 6):
        drift(student, seed)
        teacher.update(student)
        resumed.update(student)
    assert resumed.decay == teacher.decay
    assert_same(resumed.model, state(teacher.model))


def adapted():
    """A network of which the last layer alone is trained."""
    student = network()
    student[0].requires_grad_(False)
    student[1].requires_grad_(False)
    return student


def test_an_average_of_the_weights_in_training_shares_all_others():
    student = adapted().eval()
    teacher, whole = Teacher(student, 0.9, without_adapter=nullcontext), Teacher(student, 0.9)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in student[2].parameters():
                parameter += torch.randn(parameter.shape, generator=generator)
        for each in (teacher, whole):
            each.update(student)
    assert set(teacher.state_dict()[0]) == {"2.weight", "2.bias"}
    x = torch.randn(4, 3)
    torch.testing.assert_close(teacher.model(x), whole.model(x))
    assert not torch.allclose(teacher.model(x), student(x))
    resumed = Teacher(student, 0.9, without_adapter=nullcontext)
    resumed.load_state_dict({name: value.clone() for name, value in teacher.state_dict()[0].items()}, {"decay": 0.5})
    assert resumed.decay == 0.5
    assert torch.equal(resumed.model(x), teacher.model(x))


def test_averages_of_other_weights_are_refused():
    teacher = Teacher(adapted(), 0.9, without_adapter=nullcontext)
    with pytest.raises(RuntimeError, match=r"averages are of other weights: \['2.bias', '3.bias'\]"):
        teacher.load_state_dict({"2.weight": torch.zeros(2, 4), "3.bias": torch.zeros(2)}, {"decay": 0.0})


def test_tensors_of_another_model_are_refused():
    teacher = Teacher(network(), 1.0)
    tensors = nn.Linear(3, 4).state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        teacher.load_state_dict(tensors, {"decay": 0.0})


@pytest.mark.parametrize("teacher_decay", [-0.1, 1.5, float("nan")])
def test_decay_out_of_range_is_refused(teacher_decay):
    with pytest.raises(ValueError, match=rf"`teacher_decay` must be in \[0, 1\], got {teacher_decay}\."):
        Teacher(network(), teacher_decay)
