"""Labels that were numbered otherwise than the model's classes are found with the model itself."""

import json

import pytest
import torch
from exact_networks import CLASSES, LINEAR, Calling, Exact, config, samples

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.cli import main
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.data.latent_cache import CachedLatents
from diffusers_ucgm.labels import LabelMapping, ModelClasses
from diffusers_ucgm.training.agreement import Agreement, labels_of, samples_by_label
from diffusers_ucgm.training.doctor import examine


NAMES = ModelClasses({0: "ant", 1: "bee", 2: "cat"}, CLASSES)


def findings(dataset, model=None, classes=NAMES, **options):
    found = examine(
        config(),
        Exact() if model is None else model,
        dataset,
        adapter=Calling(),
        transport=LINEAR,
        classes=classes,
        **options,
    )
    return [each for each in found if each.name == "labels"]


def relabelled(permutation):
    data = samples()
    data.class_labels = torch.tensor(permutation)[data.class_labels]
    return data


def test_the_right_labels_are_not_doubted():
    assert findings(samples()) == []
    assert findings(samples(), classes=None) == []


@pytest.mark.parametrize(
    ("permutation", "told"),
    [
        ([1, 2, 0], "0 (ant) -> 2 (cat), 1 (bee) -> 0 (ant), 2 (cat) -> 1 (bee)"),
        ([1, 0, 2], "0 (ant) -> 1 (bee), 1 (bee) -> 0 (ant)"),
    ],
)
def test_another_numbering_is_an_error_that_names_the_classes(permutation, told):
    (finding,) = findings(relabelled(permutation))
    assert finding.level == "error"
    assert told in finding.message


def test_labels_without_any_meaning_are_a_warning():
    data = samples()
    data.class_labels = torch.randint(CLASSES, (48,), generator=torch.Generator().manual_seed(0))
    (finding,) = findings(data)
    assert finding.level == "warning"
    assert "33% would be chance" in finding.message


def test_a_network_that_is_not_trained_or_does_not_look_at_labels_tells_nothing():
    assert findings(relabelled([1, 2, 0]), is_pretrained=False) == []
    blind = Exact()
    blind.fields = [blind.fields[-1]] * 4
    assert findings(relabelled([1, 2, 0]), blind) == []


@pytest.mark.parametrize("label", [3, 7, -1])
def test_labels_out_of_range_are_named_wherever_they_are(label):
    data = samples(200)
    data.class_labels[57] = label
    (finding,) = findings(data)
    assert finding.level == "error"
    assert f"are 0 to 2, the data have [{label}] too" in finding.message


def test_data_without_labels_are_named():
    (finding,) = findings([{"latents": each["latents"]} for each in samples()])
    assert "have no `class_labels`" in finding.message


class Stored(LatentDataset):
    """Data with what a cache says of its labels."""

    def __init__(self, labels):
        data = samples()
        super().__init__(data.latents, data.class_labels)
        self.index = {"labels": labels}


def test_a_cache_of_a_model_with_other_names_is_named():
    stored = LabelMapping(ModelClasses({0: "bee", 1: "ant", 2: "cat"}, 3), ["bee", "ant", "cat"]).to_dict()
    (finding,) = findings(Stored(json.loads(json.dumps(stored))))
    assert finding.level == "error"
    assert "0 was 'bee', is 'ant'; 1 was 'ant', is 'bee'" in finding.message
    same = LabelMapping(NAMES, ["CAT", "ant"]).to_dict()
    assert findings(Stored(same)) == []


def test_a_map_that_moves_a_name_to_another_class_is_asked_about():
    moved = LabelMapping(NAMES, ["ant", "bee"], {"ant": "cat"}).to_dict()
    (finding,) = findings(Stored(moved))
    assert finding.level == "warning"
    assert "'ant' is 2, which the model calls 'cat'" in finding.message


def test_the_most_frequent_labels_are_looked_at_with_equally_many_samples():
    labels = torch.tensor([7] * 3 + [5] * 40 + [1] * 20 + list(range(20, 40)))
    places = samples_by_label(labels)
    found = labels[places]
    assert [int((found == each).sum()) for each in (7, 5, 1)] == [3, 8, 8]
    assert len(found.unique()) == 10
    assert samples_by_label(torch.tensor([3])) == [0]


def test_one_lucky_half_is_not_enough():
    """What one half of the samples chooses must hold on the other half."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 5
    wrong = 0
    for _ in range(40):
        errors = torch.rand(40, 5, generator=generator).double()
        wrong += bool(Agreement(errors, labels, list(range(5))).better)
    assert wrong <= 2


def test_labels_are_known_without_the_latents():
    data = samples()
    assert torch.equal(labels_of(data), data.class_labels)
    assert torch.equal(labels_of(list(data)), data.class_labels)
    assert labels_of([{"latents": torch.zeros(1)}]) is None


def test_a_cache_with_the_alphabets_numbers_is_found_by_the_command(tmp_path, capsys):
    pipe = UCGMPipeline.from_pretrained("fashion-mnist-2-step")
    pipe.set_progress_bar_config(disable=True)
    names = ("Trouser", "Bag", "Ankle boot")
    for i, name in enumerate(names):
        (tmp_path / "photos" / name).mkdir(parents=True)
        drawn = pipe([name] * 8, generator=torch.Generator().manual_seed(i)).images
        for k, image in enumerate(drawn):
            image.save(tmp_path / "photos" / name / f"{k}.png")
    cache = ["cache", "--pipeline", "fashion-mnist", "--source", str(tmp_path / "photos"), "--size", "32", "--output"]
    doctor = ["doctor", "--pipeline", "fashion-mnist", "--learning-rate", "1e-5", "--train-batch-size", "16", "--data"]
    assert main([*cache, str(tmp_path / "right")]) == 0
    assert sorted(labels_of(CachedLatents(tmp_path / "right")).unique().tolist()) == [1, 8, 9]
    capsys.readouterr()
    main([*doctor, str(tmp_path / "right")])
    assert ": labels: " not in capsys.readouterr().out
    (tmp_path / "map.json").write_text(json.dumps({"Ankle boot": 1, "Trouser": 9}))
    assert main([*cache, str(tmp_path / "wrong"), "--label-map", str(tmp_path / "map.json")]) == 0
    capsys.readouterr()
    assert main([*doctor, str(tmp_path / "wrong")]) == 1
    printed = capsys.readouterr().out
    assert "error: labels: The labels are not the classes of the model" in printed
    assert "1 (Trouser) -> 9 (Ankle boot), 9 (Ankle boot) -> 1 (Trouser)" in printed
    assert "'Ankle boot' is 1, which the model calls 'Trouser'" in printed
