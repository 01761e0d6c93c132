"""The pictures of `train_emoji.py`: two sets of emoji from npm, or any source with captions, as one image folder.

`train/` and `test/` hold PNG files and a `metadata.jsonl`, as `datasets` and diffusers' own scripts read them: the
column `text` is a list of captions, of which the first is the plain one. `test/` holds whole subjects that training
never sees (`kind` "subject"), and known subjects with a skin tone, gender or style that training does not see them
with ("combination").
"""

import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from diffusers_ucgm.data.images import ImageItems, load_image_dataset
from diffusers_ucgm.files import replacing, replacing_folder, write_json, write_text


SIZE = 64  # of Noto's files; Fluent's have 256 pixels
CAPTIONS = 8  # per picture
HELD_OUT = 0.08  # the fraction of the combinations
TONES = {"1f3fb": "light", "1f3fc": "medium-light", "1f3fd": "medium", "1f3fe": "medium-dark", "1f3ff": "dark"}
# A man or a woman is a code at the front, or a sign that a joiner (200d) binds to the end.
GENDERS = {"1f468": "man", "1f469": "woman", "200d-2642": "man", "200d-2640": "woman"}
PERSON = "1f9d1"

MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
LICENCES = """Pictures of the style "noto": Noto Emoji, Copyright Google, from the npm package emoji-datasource-google
16.0.0. Licensed under the Apache License, Version 2.0, whose text is at the end of this file.

Names and categories: emoji-datasource-google 16.0.0, Copyright (c) 2013 Cal Henderson, MIT licence.

Pictures of the style "fluent": Fluent Emoji, Copyright (c) Microsoft Corporation, MIT licence, from the npm package
@lobehub/fluent-emoji-3d 1.1.0, Copyright (c) 2023 LobeHub, MIT licence.

The MIT licence:

"""


@dataclass(frozen=True)
class Package:
    """A file of the npm registry.

    Attributes:
        name: With its scope.
        version: The only one that is taken.
        sha256: Of the whole file.
    """

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """As `npm pack` calls it."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


NOTO = Package("emoji-datasource-google", "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438")
FLUENT = Package(
    "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
)


@dataclass(frozen=True)
class Picture:
    """What is known of a picture, and its captions.

    Attributes:
        file_name: Of the PNG file.
        subject: What it shows, such as "woman surfing".
        style: "noto" or "fluent"; empty for other sources.
        tone: Of the skin, such as "dark"; empty where the subject has none or the picture is yellow.
        gender: "man", "woman" or empty.
        category: Such as "food-fruit".
        concept: What pictures of the same subject share, whatever their gender, tone and style.
        captions: The plain caption and others.
    """

    file_name: str
    subject: str
    style: str
    tone: str
    gender: str
    category: str
    concept: str
    captions: tuple[str, ...]

    def row(self, kind: str) -> dict[str, object]:
        """The line of `metadata.jsonl`; `kind` says what of it training has seen."""
        values = {name: value for name, value in vars(self).items() if name not in ("file_name", "captions")}
        return {"file_name": self.file_name, "text": list(self.captions), **values, "kind": kind}


def fetch(package: Package, folder: Path) -> Path:
    """The package's file, from the registry where the folder does not have it yet.

    Raises:
        SystemExit: If it cannot be fetched; the message says what to do.
    """
    file = folder / package.file_name
    by_hand = f"Or put the file {package.file_name} of {package.name}@{package.version} into {folder} yourself."
    if not file.is_file():
        if shutil.which("npm") is None:
            raise SystemExit(f"`npm` must be installed to fetch {package.name}: install Node.js. {by_hand}")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            command = ["npm", "pack", "--loglevel=error", f"{package.name}@{package.version}"]
            result = subprocess.run(command, cwd=temporary, capture_output=True, text=True)
            if result.returncode != 0:
                reason = (result.stderr or result.stdout).strip()[-500:]
                raise SystemExit(
                    f"`{' '.join(command)}` failed. Check the network and npm's registry (`npm ping`), and run this "
                    f"again. {by_hand}\n{reason}"
                )
            with replacing(file) as whole:
                shutil.copyfile(Path(temporary) / package.file_name, whole)
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != package.sha256:
        raise SystemExit(f"{file} must have the SHA-256 {package.sha256}, got {found}. Delete it and run this again.")
    return file


def files_in(package: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """The names and contents of a package's files whose whole path matches; the group of the pattern is the name."""
    with tarfile.open(package) as archive:
        for member in archive:
            if member.isfile() and (found := re.fullmatch(pattern, member.name)):
                yield found[1], archive.extractfile(member).read()  # pyright: ignore[reportOptionalMemberAccess]


def codes_of(name: str) -> str:
    """The code points of an emoji in a form that is the same for both packages.

    Both write them in hexadecimal, one with leading zeros, one with underscores, and either may leave out the
    variation selector fe0f, which asks for a coloured picture, and e007f, which ends a tag.
    """
    codes = (code.lstrip("0") for code in name.lower().replace("_", "-").split("-"))
    return "-".join(code for code in codes if code not in ("fe0f", "e007f"))


def describe(entry: dict[str, object]) -> dict[str, tuple[str, list[str], str, str, str, str]]:
    """Map the codes of an entry of `emoji.json`, and of its skin tones, to subject, aliases, tone and the rest."""
    name, category = str(entry["name"]), str(entry["subcategory"])
    subject = name.lower()
    # A number after a word tells short names apart; other names are a number, such as 100 and +1.
    shorts = (re.sub(r"(?<=[a-z_])\d+$", "", str(short)) for short in entry["short_names"])
    aliases = [short.replace("_", " ").replace("-", " ").strip() for short in shorts]
    if category in ("country-flag", "subdivision-flag"):
        subject, aliases = f"flag of {name.removesuffix(' Flag')}", []
    base = codes_of(str(entry["unified"]))
    variations = {codes_of(each["unified"]): tones for tones, each in entry.get("skin_variations", {}).items()}
    people = [gender for codes, gender in GENDERS.items() if codes in base]
    # Couples and families have several; their genders are part of the subject.
    gender = people[0] if len(people) == 1 and base.count("200d") <= 2 and "family" not in category else ""
    concept = base
    if gender:
        concept = re.sub(r"^1f46[89]", PERSON, re.sub(r"-200d-264[02]$", "", base))
    described = {}
    for codes, tones in {base: "", **variations}.items():
        tone = " and ".join(dict.fromkeys(TONES[each] for each in tones.lower().split("-"))) if tones else ""
        described[codes] = (subject, aliases, tone, gender, category, concept)
    return described


def captions_of(subject: str, aliases: list[str], tone: str, style: str, category: str, seed: str) -> tuple[str, ...]:
    """The plain caption, and others whose parts are shuffled, reworded or left out."""
    draws = random.Random(seed)
    skin = f"{tone} skin {'tones' if ' and ' in tone else 'tone'}" if tone else ""
    captions = [", ".join(filter(None, (subject, skin, f"{style} style")))]
    while len(captions) < CAPTIONS:
        name = draws.choice([subject, subject, *aliases])
        look = draws.choice([f"{style} style", f"{style} style", f"in {style} style", f"{style} emoji", ""])
        parts = [skin and draws.choice([skin, f"with {skin}"]), look, draws.choice(["", "", category])]
        parts = [part for part in parts if part]
        draws.shuffle(parts)
        # The subject is first most of the time, as people write it.
        parts.insert(0 if draws.random() < 0.7 else draws.randint(0, len(parts)), name)
        captions.append(", ".join(parts))
    return tuple(captions)


def on_white(content: bytes) -> Image.Image:
    """The picture without transparency, of `SIZE` pixels each way."""
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return whole if whole.size == (SIZE, SIZE) else whole.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def emoji(packages: Path) -> Iterator[tuple[Picture, Image.Image]]:
    """Both sets of emoji with their words; pictures without a name in `emoji.json` are left out and counted."""
    noto, fluent = fetch(NOTO, packages), fetch(FLUENT, packages)
    [(_, table)] = files_in(noto, r"package/(emoji)\.json")
    words = {codes: each for entry in json.loads(table) for codes, each in describe(entry).items()}
    unknown, seen = [], set()
    sets = (("noto", noto, r"package/img/google/64/(.+)\.png"), ("fluent", fluent, r"package/assets/(.+)\.webp"))
    for style, package, pattern in sets:
        for name, content in files_in(package, pattern):
            codes = codes_of(name)
            if codes not in words:
                unknown.append(f"{style} {name}")
            elif (style, codes) not in seen:  # Fluent has the keycaps twice
                seen.add((style, codes))
                subject, aliases, tone, gender, category, concept = words[codes]
                captions = captions_of(subject, aliases, tone, style, category, f"{style}-{codes}")
                picture = Picture(f"{style}-{codes}.png", subject, style, tone, gender, category, concept, captions)
                yield picture, on_white(content)
    print(f"left out, without a name: {len(unknown)} {unknown[:5]}")


def pictures_of(source: str) -> Iterator[tuple[Picture, Image.Image]]:
    """The pictures of any source with captions that `ucgm cache` reads; each is a subject of its own."""
    opened = load_image_dataset(source)
    if opened.caption_column is None:
        raise SystemExit(f"--source must have captions, got columns {opened.columns}. See docs/image-sources.md.")
    items, empty = ImageItems(opened, SIZE), 0
    for _, rows in items.blocks(256, lambda number: True):
        for number, row in rows:
            prepared = items.prepare(number, row)
            if prepared is None:
                continue
            text = row[opened.caption_column]
            texts = [each for each in text if each is not None] if isinstance(text, list) else [prepared["caption"]]
            captions = tuple(str(each) for each in texts if str(each).strip())
            if not captions:
                empty += 1
                continue
            array = ((prepared["pixels"] + 1.0) * 127.5).round().byte().permute(1, 2, 0).numpy()
            name = f"{number:06d}"
            yield (
                Picture(f"{name}.png", captions[0], "", "", "", "", name, captions),
                Image.fromarray(array),
            )
    print(f"left out: {items.skipped[:5]}, with an empty caption: {empty}")


def fraction(text: str) -> float:
    """A number in [0, 1) that follows from a text alone, so that the same pictures are held out everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


Kind = Literal["seen", "combination", "subject"]


def kinds_of(pictures: Iterable[Picture], num_subjects: int) -> dict[str, Kind]:
    """Map file names to what training sees of them: "seen" is the training split, the others are the test split.

    Raises:
        SystemExit: If so many subjects are held out that none is left for training.
    """
    pictures = list(pictures)
    # No one can draw a flag from a country's name alone.
    concepts = {each.concept for each in pictures if not each.category.endswith("flag")}
    if not 0 <= num_subjects < len(concepts):
        raise SystemExit(
            f"--unseen-subjects must be at least 0 and less than the {len(concepts)} subjects that there are, got "
            f"{num_subjects}."
        )
    unseen = set(sorted(concepts, key=fraction)[:num_subjects])
    styles = {(each.concept, each.tone, each.gender, each.style) for each in pictures}
    kinds: dict[str, Kind] = {}
    for each in pictures:
        key = f"{each.concept} {each.tone} {each.gender}"
        if each.tone or each.gender:
            is_held = fraction(f"{key} {each.style}") < HELD_OUT
        else:
            # Of a plain picture that both styles have, one style may be held out.
            others = {style for *same, style in styles if same == [each.concept, "", ""]}
            held = sorted(others)[int(fraction(f"style {key}") * len(others))]
            is_held = len(others) > 1 and each.style == held and fraction(key) < HELD_OUT
        kinds[each.file_name] = "subject" if each.concept in unseen else "combination" if is_held else "seen"
    # Training must know what it shall combine: a subject that would be held out completely stays in training.
    known = {each.concept for each in pictures if kinds[each.file_name] == "seen"}
    return {
        each.file_name: "seen"
        if kinds[each.file_name] == "combination" and each.concept not in known
        else kinds[each.file_name]
        for each in pictures
    }


def licences(source: str | None) -> str:
    """The licences of the pictures, for people who pass on the pictures or a model trained on them."""
    if source is not None:
        return f"The licence of the pictures is that of their source: {source}\n"
    return LICENCES + MIT + "\n\n" + (Path(__file__).parents[1] / "LICENSE").read_text()


def prepare(output: Path, *, source: str | None = None, num_subjects: int = 150) -> Path:
    """Write the image folder `output/data`; one that was made with the same settings is left alone."""
    folder = output / "data"
    settings = {"source": source, "size": SIZE, "captions": CAPTIONS, "unseen_subjects": num_subjects}
    record = folder / "prepared.json"
    if record.is_file() and json.loads(record.read_text())["settings"] == settings:
        print(f"Pictures: {folder} (there already)")
        return folder
    made = emoji(output / "packages") if source is None else pictures_of(source)
    pictures = {picture.file_name: (picture, image) for picture, image in made}
    kinds = kinds_of((picture for picture, _ in pictures.values()), num_subjects)
    with replacing_folder(folder) as temporary:
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for name, (picture, image) in sorted(pictures.items()):
            split = "train" if kinds[name] == "seen" else "test"
            (temporary / split).mkdir(exist_ok=True)
            image.save(temporary / split / name)
            lines[split].append(json.dumps(picture.row(kinds[name])))
        for split, rows in lines.items():
            if rows:
                write_text(temporary / split / "metadata.jsonl", "\n".join(rows) + "\n")
        write_text(temporary / "LICENCES.txt", licences(source))
        write_json(temporary / record.name, {"settings": settings, "kinds": Counter(kinds.values())})
    print(f"Pictures: {folder} {dict(Counter(kinds.values()))}")
    return folder


def write_prompts(output: Path) -> Path:
    """Write `prompts.jsonl` for `ucgm evaluate`: the test split, and as many pictures of training as it has.

    The order is random, so that the first prompts are of every kind.
    """
    rows: dict[str, list[dict[str, object]]] = {"train": [], "test": []}
    for split in rows:
        file = output / "data" / split / "metadata.jsonl"
        if file.is_file():
            read = map(json.loads, file.read_text().splitlines())
            rows[split] = [{**row, "file_name": f"data/{split}/{row['file_name']}"} for row in read]
    draws = random.Random(0)
    seen = draws.sample(rows["train"], min(len(rows["train"]), len(rows["test"]) or len(rows["train"])))
    lines = [json.dumps({name: row[name] for name in ("file_name", "text", "kind")}) for row in seen + rows["test"]]
    draws.shuffle(lines)
    return write_text(output / "prompts.jsonl", "\n".join(lines) + "\n")
