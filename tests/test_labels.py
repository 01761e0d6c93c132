"""Labels of a source become the model's classes by name, or are refused."""

import json

import pytest

from diffusers_ucgm.labels import LabelMapping, ModelClasses, read_label_map


FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
MODEL = ModelClasses(dict(enumerate(FASHION)), 10)
NAMELESS = ModelClasses({}, 3)


def mapped(labels, model=MODEL, given=None):
    return LabelMapping(model, labels, given).classes


def test_folders_are_the_classes_they_are_called_not_their_place_in_the_alphabet():
    assert mapped(sorted(FASHION)) == {name: index for index, name in enumerate(FASHION)}
    assert mapped(["Bag", "Sneaker"]) == {"Bag": 8, "Sneaker": 7}


@pytest.mark.parametrize(
    ("label", "index"),
    [
        ("bag", 8),
        (" BAG ", 8),
        ("ankle_boot", 9),
        ("Ankle-Boot", 9),
        ("ankle  boot", 9),
        ("AnkleBoot", 9),
        ("t-shirt_top", 0),
        ("T shirt top", 0),
        ("3", 3),
        ("03", 3),
        ("ｂａｇ", 8),  # full-width letters
    ],
)
def test_case_spaces_lines_and_ids_make_no_difference(label, index):
    assert mapped([label]) == {label: index}


def test_names_are_compared_as_unicode_has_them():
    model = ModelClasses.of({"0": "Caf\u00e9", "1": "stra\u00dfe", "2": "\u0928\u094d\u092f\u0942"}, 3)
    assert mapped(["Cafe\u0301", "STRASSE", "\u0928\u094d\u092f\u0942"], model) == {
        "Cafe\u0301": 0,
        "STRASSE": 1,
        "\u0928\u094d\u092f\u0942": 2,
    }


def test_synonyms_of_a_class_are_its_names():
    model = ModelClasses({0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 2: "crane", 3: "crane"}, 4)
    assert mapped(["tinca_tinca"], model) == {"tinca_tinca": 0}
    assert mapped(["tench, Tinca tinca"], model) == {"tench, Tinca tinca": 0}
    with pytest.raises(ValueError, match=r"'crane' may be 2: 'crane', 3: 'crane'"):
        mapped(["crane"], model)


def test_the_stricter_form_of_a_name_decides():
    model = ModelClasses({0: "C", 1: "C++", 2: "T-shirt", 3: "T shirt"}, 4)
    assert mapped(["C++"], model) == {"C++": 1}
    assert mapped(["C"], model) == {"C": 0}
    assert mapped(["T-shirt", "T shirt"], model) == {"T-shirt": 2, "T shirt": 3}
    with pytest.raises(ValueError, match="'t_shirt' may be 2: 'T-shirt', 3: 'T shirt'"):
        mapped(["t_shirt"], model)


def test_a_number_that_names_one_class_and_is_the_id_of_another_is_ambiguous():
    digits = ModelClasses({i: str(i) for i in range(10)}, 10)
    assert mapped(["0", "7"], digits) == {"0": 0, "7": 7}
    shifted = ModelClasses({i: str(i + 1) for i in range(10)}, 10)
    with pytest.raises(ValueError, match="'1' may be 0: '1', 1: '2'"):
        mapped(["1"], shifted)
    assert mapped(["1"], shifted, {"1": 0}) == {"1": 0}


def test_what_is_no_class_is_refused_with_both_lists_and_the_nearest_name():
    with pytest.raises(ValueError, match="`labels` must be classes of the model") as caught:
        mapped(["Sneakers", "Bag", "Hat"])
    text = str(caught.value)
    for part in (
        "['Sneakers', 'Bag', 'Hat']",
        "'Sneakers' is no class. Did you mean 'Sneaker'?",
        "'Hat' is no class.",
        "9: 'Ankle boot'",
        "`--label-map`",
    ):
        assert part in text
    assert "'Bag' is no class" not in text


def test_two_labels_are_one_class_only_if_that_is_said():
    with pytest.raises(ValueError, match=r"\['bag', 'Bag'\] would all be 8: 'Bag'"):
        mapped(["bag", "Bag"])
    assert mapped(["bag", "Bag"], given={"bag": "Bag"}) == {"bag": 8, "Bag": 8}


def test_a_label_map_says_the_rest():
    given = {"sneakers": "Sneaker", "hat": 8}
    assert mapped(["Sneakers", "hat", "coat"], given=given) == {"Sneakers": 7, "hat": 8, "coat": 4}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"Hut": 3}, "'Hut' is no label of the source. Did you mean 'Hat'"),
        ({"Hat": "Sneekers"}, "'Hat': 'Sneekers' is no class. Did you mean 'Sneaker'"),
        ({"Hat": 10}, "'Hat': 10 is no class: ids are from 0 to 9"),
        ({"Hat": -1}, "-1 is no class"),
        ({"hat": 1, "HAT": 2}, "'HAT' is named twice"),
    ],
)
def test_a_label_map_is_checked_itself(given, message):
    with pytest.raises(ValueError, match=message):
        mapped(["Hat", "Bag"], given=given)


def test_numbers_without_names_are_ids_in_range():
    mapping = LabelMapping(MODEL)
    assert [mapping(0), mapping(9)] == [0, 9]
    for label in (10, -1, 2.5, True, None):
        with pytest.raises((ValueError, TypeError), match="must be ids from 0 to 9"):
            mapping(label)
    assert LabelMapping(MODEL, given={"12": "Bag"})(12) == 8


def test_names_that_come_later_are_matched_when_they_come():
    mapping = LabelMapping(MODEL)
    assert mapping("bag") == mapping("bag") == 8
    with pytest.raises(ValueError, match="'Hat' is no class"):
        mapping("Hat")
    with pytest.raises(ValueError, match=r"\['bag', 'Bag'\] would all be"):
        mapping("Bag")
    assert mapping.to_dict() == {"classes": {"bag": 8}, "names": {"8": "Bag"}}


def test_a_model_without_names_keeps_the_order_and_says_so():
    mapping = LabelMapping(NAMELESS, ["ant", "bee", "cat"])
    assert mapping.classes == {"ant": 0, "bee": 1, "cat": 2}
    assert "numbered in the source's order" in "\n".join(mapping.lines())
    fewer = LabelMapping(NAMELESS, ["ant", "bee"])
    assert "2 of the model's 3 classes" in "\n".join(fewer.lines())
    with pytest.raises(ValueError, match="must be at most 3, the classes of the model, got 4"):
        mapped(["ant", "bee", "cat", "dog"], NAMELESS)
    with pytest.raises(ValueError, match=r"must name the class of every label .* got none for \['bee'\]"):
        mapped(["ant", "bee"], NAMELESS, {"ant": 1})
    assert mapped(["ant", "bee"], NAMELESS, {"ant": 1, "bee": 0}) == {"ant": 1, "bee": 0}


def test_numbered_folders_are_ids_whatever_their_order():
    model = ModelClasses({}, 12)
    labels = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2
    assert mapped(labels, model) == {label: int(label) for label in labels}
    with pytest.raises(ValueError, match="'12' is no class"):
        mapped(["1", "12"], model)


def test_the_folders_of_imagenet_are_its_classes_in_order():
    labels = [f"n{i:08d}" for i in range(1000, 2000)]
    names = {0: "tench, Tinca tinca", **{i: f"thing {i}" for i in range(1, 1000)}}
    assert mapped(list(reversed(labels)), ModelClasses(names, 1000)) == {each: i for i, each in enumerate(labels)}
    with pytest.raises(ValueError, match="'n00001000' is no class"):
        mapped(labels, ModelClasses({**names, 0: "something else"}, 1000))
    with pytest.raises(ValueError, match="'n00001000' is no class"):
        mapped(labels[:10], ModelClasses(names, 1000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "which cannot be read"),
        ("", "which cannot be read"),
        ("[1, 2]", r"with \[1, 2\]"),
        ("{}", "with {}"),
        ('{"a": 1, "a": 2}', r"\['a'\] occur twice"),
        ('{"a": true}', "'a' has True"),
        ('{"a": 1.5}', "'a' has 1.5"),
        ('{"a": null}', "'a' has None"),
        ('{"a": ["b"]}', "'a' has"),
    ],
)
def test_a_file_that_is_no_label_map_is_named(tmp_path, text, message):
    file = tmp_path / "map.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_label_map(file)
    assert "map.json" in str(caught.value)


def test_a_label_map_is_read(tmp_path):
    (tmp_path / "map.json").write_text("\ufeff" + json.dumps({"hüte": "Bag", "b": 3}), encoding="utf-8")
    assert read_label_map(tmp_path / "map.json") == {"hüte": "Bag", "b": 3}
    (tmp_path / "bytes.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(ValueError, match="cannot be read"):
        read_label_map(tmp_path / "bytes.json")
    with pytest.raises(FileNotFoundError, match="which is no file"):
        read_label_map(tmp_path)
