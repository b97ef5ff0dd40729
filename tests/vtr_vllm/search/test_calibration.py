import base64
import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vtr_vllm.errors import CalibrationError
from vtr_vllm.search import calibration
from vtr_vllm.search.calibration import (
    Dataset,
    check_disjoint,
    decode_image,
    write_items,
)


def picture(shade: int = 0, size: tuple[int, int] = (6, 4)) -> Image.Image:
    """A picture of its own for every shade."""
    image = Image.new("RGB", size, (shade % 256, shade // 256, 7))
    image.putpixel((1, 2), (255, 0, 0))
    return image


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def uri(encoded: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def row(shade: int = 0, **changes: object) -> dict[str, object]:
    """A good line; None as a change takes a key away."""
    values = {
        "image": uri(encode(picture(shade))),
        "question": "What color?",
        "answers": ["red"],
        "metric": "exact_match",
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def save(folder: Path, *rows: object, name: str = "items.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def load(folder: Path, *rows: object, name: str = "items.jsonl") -> Dataset:
    return Dataset.load(save(folder, *rows, name=name))


def refusal(folder: Path, *rows: object) -> list[str]:
    """The lines of the refusal, without its headline."""
    path = save(folder, *rows)
    with pytest.raises(CalibrationError) as error:
        Dataset.load(path)
    headline, *problems = str(error.value).splitlines()
    assert str(path) in headline
    return [problem.removeprefix(f"{path}:") for problem in problems]


def test_loads_paths_and_data_uris(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(encode(picture(1)))
    data = load(
        tmp_path,
        row(image="pictures/a.png", id="one", kind="color"),
        row(2, answers=["B"], metric="option_letter"),
    )
    assert len(data) == 2
    one, two = data.items
    assert (one.id, one.kind, one.line) == ("one", "color", 1)
    assert (two.id, two.kind, two.line) == ("2", None, 2)
    assert (one.question, one.answers, one.metric) == ("What color?", ("red",), "exact_match")
    for item, shade in zip(data.items, (1, 2), strict=True):
        image = item.load_images()[0]
        assert (image.mode, image.tobytes()) == ("RGB", picture(shade).tobytes())
        assert item.data_uris() == [uri(encode(picture(shade)))]


def turn(shade: int | None = None, **changes: object) -> dict[str, object]:
    """A good earlier turn, with an image or without."""
    image = {} if shade is None else {"image": uri(encode(picture(shade)))}
    return image | {"question": "And what else?", "answer": "A dot."} | changes


def test_a_question_may_be_the_last_of_a_conversation(tmp_path):
    data = load(
        tmp_path,
        row(image=None, history=[turn(1), turn()]),
        row(3, history=[turn(1), turn(2)]),
        row(3),
    )
    one, three, alone = data.items
    assert data.most_images == 3
    assert [len(item.image_hashes) for item in data.items] == [1, 3, 1]
    assert [image.getpixel((0, 0))[0] for image in three.load_images()] == [1, 2, 3]
    assert one.data_uris() == [uri(encode(picture(1)))]
    assert three.image_hashes[0] == one.image_hashes[0]
    assert alone.history == ()


def test_all_of_a_conversation_tells_items_apart(tmp_path):
    items = load(
        tmp_path,
        row(1, history=[turn()]),
        row(1, history=[turn(answer="Nothing.")]),
        row(1, history=[turn(), turn()]),
        row(1, history=[turn(2)]),
        row(1),
    ).items
    assert len({item.content_hash for item in items}) == 5
    again = row(1, history=[turn(question="And  what else?")])
    assert refusal(tmp_path, row(1, history=[turn()]), again) == [
        "2: the image and question of line 1 once more"
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": None}, "missing image; required are image, question,"),
        ({"image": None, "history": [turn()]}, "missing image;"),
        ({"history": turn()}, "history must be a list of objects"),
        ({"history": ["What?"]}, "history must be a list of objects"),
        ({"history": [turn(), {"question": "What?"}]}, "turn 2 of history: missing answer;"),
        ({"history": [turn(metric="anls")]}, "turn 1 of history: unknown ['metric']"),
        ({"history": [turn(answer=" ")]}, "turn 1 of history: answer must be a text"),
        ({"history": [turn(image=3)]}, "turn 1 of history: image must be a text"),
        ({"history": [turn(image="no.png")]}, "the image"),
    ],
)
def test_a_conversation_that_cannot_be_asked_is_refused(tmp_path, changes, reason):
    values = row(1)
    for key, value in changes.items():
        values.pop(key, None)
        if value is not None:
            values[key] = value
    (problem,) = refusal(tmp_path, values)
    assert reason in problem


def test_an_image_of_an_earlier_turn_is_an_overlap(tmp_path):
    calibration = load(tmp_path, row(1, history=[turn(2)]), name="calibration.jsonl")
    for other in (row(2, question="Why?"), row(3, history=[turn(2)])):
        evaluation = load(tmp_path, other, name="evaluation.jsonl")
        with pytest.raises(CalibrationError, match="image of .*calibration.jsonl:1"):
            check_disjoint(calibration, evaluation)
    check_disjoint(calibration, load(tmp_path, row(3, history=[turn(4)]), name="other.jsonl"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (row(question="Is it  red?"), row(question="Is it red?")),
        (row(history=[turn(1, answer="A  dot.")]), row(history=[turn(1)])),
    ],
)
def test_other_whitespace_is_the_same_question_and_other_data(tmp_path, one, other):
    """An overlap, but no answer to the one is an answer to the other."""
    data = [load(tmp_path, each, name=f"{i}.jsonl") for i, each in enumerate((one, other))]
    assert data[0].sha256 != data[1].sha256
    with pytest.raises(CalibrationError, match="the image and the question of"):
        check_disjoint(*data)


def test_a_last_line_needs_no_end(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(row()))
    assert len(Dataset.load(path)) == 1


def test_answers_may_be_left_out_of_a_whole_file(tmp_path):
    without = {"answers": None, "metric": None}
    data = load(tmp_path, row(1, **without), row(2, **without))
    assert not data.answered
    assert [(item.answers, item.metric) for item in data.items] == [((), None)] * 2
    answered = load(tmp_path, row(1), row(2))
    assert answered.answered
    assert data.sha256 != answered.sha256
    assert refusal(tmp_path, row(1, **without), row(2), row(3, **without)) == [
        "2: answers, where the first good line has none; give every line answers and metric, or"
        " none for a label-free search"
    ]


def test_the_data_uri_has_the_true_type(tmp_path):
    jpeg = encode(picture(), "JPEG")
    item = load(tmp_path, row(image=uri(jpeg, kind="png"))).items[0]
    assert item.data_uris() == [uri(jpeg, kind="jpeg")]


ANIMATED = encode(picture(), "GIF", save_all=True, append_images=[picture(99)])
BROKEN = encode(Image.effect_noise((64, 64), 50))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", r"expected a JSON object, got \[\]"),
        ('{"id": "a", "id": "b"}', "a key is given twice"),
        ('{"id": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "not valid JSON"),
        (json.dumps(row(question="\ud800")), "not valid JSON"),
        (
            row(question=None),
            "missing question; required are image, question, answers, metric, optional id, kind, history",
        ),
        (row(image=None, metric=None), "missing image, metric"),
        (row(metric=None), "missing metric; required are"),
        (row(answers=None), "missing answers; required are"),
        (row(answers=None, metric=None), "no answers, where the first good line has some"),
        (row(answer="red"), r"unknown \['answer'\]"),
        (row(metric="bleu"), "unknown metric 'bleu'; there are exact_match"),
        (row(metric=3), "metric must be a text"),
        (row(question=" "), "question must be a text, not blank"),
        (row(id=7), "id must be a text"),
        (row(kind=""), "kind must be a text"),
        (row(answers=[]), "one text or more"),
        (row(answers=["red", ""]), "none of them blank"),
        (row(answers="red"), "answers must be a list of texts, got 'red'"),
        (row(answers=["red", 1]), "answers must be a list of texts"),
        (row(metric="option_letter"), "must each be one letter from A to Z"),
        (row(image="gone.png"), "gone.png cannot be read"),
        (row(image="."), "cannot be read"),
        (row(image="a\0b"), "cannot be read"),
        (row(image="A" * 100_000), "cannot be read"),
        (row(image="https://example.org/a.png"), "cannot be read"),
        (row(image="data:text/plain,hello"), "must start data:image"),
        (row(image="data:image/png;base64,!!"), "not valid base64"),
        (row(image=uri(b"hello")), "no image of a format that is read; send one of PNG"),
        (row(image=uri(b"")), "no image of a format that is read"),
        (row(image=uri(encode(picture(), "TIFF"), "tiff")), "no image of a format that is read"),
        (row(image=uri(encode(picture(), "AVIF"), "avif")), "no image of a format that is read"),
        (row(image=uri(ANIMATED, "gif")), "the GIF image is animated"),
        (row(image=uri(encode(picture(size=(603, 3))))), "at most 200 times the other"),
        (row(image=uri(BROKEN[: len(BROKEN) // 2])), "does not decode"),
    ],
)
def test_a_faulty_line_is_refused_by_number(tmp_path, line, reason):
    problems = refusal(tmp_path, row(1), line, row(3))
    assert len(problems) == 1
    assert re.match(rf"2: .*{reason}", problems[0])
    assert len(problems[0]) < 1000


def test_bytes_that_are_no_text_are_refused_by_number(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(CalibrationError, match=r"items.jsonl:2: not valid JSON \(UnicodeDecode"):
        Dataset.load(path)


def test_other_line_separators_do_not_count(tmp_path):
    text = json.dumps(row(question="a\u2028b\u0085c"), ensure_ascii=False)
    assert refusal(tmp_path, text, "{}") == refusal(tmp_path, row(), "{}")


def test_duplicates_are_refused_by_number(tmp_path):
    problems = refusal(
        tmp_path,
        row(1, id="a"),
        row(2, id="a"),
        row(1, question=" What  color?\n"),
        row(1, question="What shape?"),
        row(5, id="4"),
    )
    assert problems == [
        "2: the id 'a' of line 1 once more",
        "3: the image and question of line 1 once more",
        "5: the id '4' of line 4 once more",
    ]


def test_every_problem_is_listed_up_to_twenty(tmp_path):
    problems = refusal(tmp_path, *[row(n, metric="no") for n in range(20)])
    assert [problem.partition(":")[0] for problem in problems] == [str(n) for n in range(1, 21)]
    problems = refusal(tmp_path, row(99), *[row(n, metric="no") for n in range(23)])
    assert len(problems) == 21
    assert problems[0].startswith("2: ")
    assert problems[-1] == "and 3 more"


def test_an_image_with_too_many_pixels_is_refused_undecoded(tmp_path):
    large = encode(Image.new("1", (4097, 4096)))
    assert re.match(
        r"1: the image has 4097 x 4096 = \d+ pixels; at most 16777216 are allowed",
        refusal(tmp_path, row(image=uri(large)))[0],
    )
    assert len(load(tmp_path, row(image=uri(encode(Image.new("1", (4096, 4096))))))) == 1


def test_no_file_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match="gone.jsonl cannot be read"):
        Dataset.load(tmp_path / "gone.jsonl")
    with pytest.raises(CalibrationError, match="holds no items"):
        Dataset.load(save(tmp_path))


def test_a_picture_that_vanishes_after_loading_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture()))
    item = load(tmp_path, row(image="a.png")).items[0]
    (tmp_path / "a.png").unlink()
    for use in (item.load_images, item.data_uris):
        with pytest.raises(CalibrationError, match="a.png cannot be read"):
            use()


def test_a_lossless_copy_has_the_same_hash(tmp_path):
    (tmp_path / "a.bmp").write_bytes(encode(picture(), "BMP"))
    forms = [
        encode(picture(), compress_level=0),
        encode(picture(), "WEBP", lossless=True),
        encode(picture().convert("RGBA")),
    ]
    first = load(tmp_path, row(image="a.bmp")).items[0]
    for form in forms:
        again = load(tmp_path, row(image=uri(form), question="What   color? ")).items[0]
        assert again.image_hash == first.image_hash
        assert again.content_hash == first.content_hash


def test_other_pixels_another_shape_or_another_question_change_the_hash(tmp_path):
    first = load(tmp_path, row()).items[0]
    shape = load(tmp_path, row(image=uri(encode(Image.new("RGB", (6, 4)))))).items[0]
    turned = load(tmp_path, row(image=uri(encode(Image.new("RGB", (4, 6)))))).items[0]
    asked = load(tmp_path, row(question="What shape?")).items[0]
    assert len({item.image_hash for item in (first, shape, turned)}) == 3
    assert asked.image_hash == first.image_hash
    assert asked.content_hash != first.content_hash


def test_orientation_and_transparency_are_as_seen():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode_image(encode(picture(), exif=exif)).size == (4, 6)
    for mode in ("RGBA", "LA"):
        clear = Image.new(mode, (2, 2), 0)
        assert decode_image(encode(clear)).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((2, 2), 257 * 7, dtype=np.uint16))
    assert decode_image(encode(deep)).getpixel((0, 0)) == (7, 7, 7)
    palette = Image.new("P", (2, 2), 3)
    palette.putpalette([n for n in range(256) for _ in "RGB"])
    assert decode_image(encode(palette)).getpixel((1, 1)) == (3, 3, 3)
    assert decode_image(encode(palette, transparency=3)).getpixel((1, 1)) == (255, 255, 255)


SEEDS = [encode(picture(9), form) for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged files
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 2000),
)
def test_damaged_images_decode_or_are_refused(encoded, changes, length):
    damaged = bytearray(encoded)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    with contextlib.suppress(CalibrationError):  # and no other error
        assert decode_image(bytes(damaged[:length])).mode == "RGB"


def test_the_hash_of_a_dataset_covers_content_answers_metric_and_order(tmp_path):
    rows = [row(1), row(2)]
    first = load(tmp_path, *rows).sha256
    assert load(tmp_path, *rows, name="other.jsonl").sha256 == first
    assert load(tmp_path, row(1, id="x", kind="k"), row(2)).sha256 == first
    changed = [
        [row(2), row(1)],
        [row(1)],
        [row(1), row(3)],
        [row(1), row(2, question="Why?")],
        [row(1), row(2, answers=["blue"])],
        [row(1), row(2, metric="contains")],
    ]
    hashes = {load(tmp_path, *other).sha256 for other in changed}
    assert len(hashes | {first}) == 7


def test_items_that_share_images_also_over_others_are_a_group(tmp_path):
    """In any order: the last item joins the first and the third."""
    images = [[1], [2], [3], [2], [1, 3], [4]]
    groups = load(
        tmp_path,
        *(
            row(last, question=f"{number}?", history=[turn(each) for each in earlier] or None)
            for number, (*earlier, last) in enumerate(images)
        ),
    ).groups
    assert [groups.index(group) for group in groups] == [0, 1, 0, 1, 0, 5]


def test_take_gives_the_first_items(tmp_path):
    data = load(tmp_path, row(1), row(2), row(3))
    assert data.take(2).items == data.items[:2]
    assert data.take(2).sha256 == load(tmp_path, row(1), row(2)).sha256
    assert data.take(3).items == data.items
    for count in (0, -1, 4):
        with pytest.raises(CalibrationError, match=rf"cannot take {count} items of .*it has 3"):
            data.take(count)


def test_disjoint_files_pass(tmp_path):
    one = load(tmp_path, row(1), row(2), name="calibration.jsonl")
    other = load(tmp_path, row(3), row(4), name="evaluation.jsonl")
    check_disjoint(one, other)


def test_an_overlap_is_refused_with_both_lines(tmp_path):
    copied = row(image=uri(encode(picture(2), "WEBP", lossless=True)))
    one = load(tmp_path, row(1), row(1, question="Why?"), row(2), name="calibration.jsonl")
    other = load(
        tmp_path, row(8), copied, row(9), row(1, question="Who?"), row(1, question="Why?"),
        name="evaluation.jsonl",
    )  # fmt: skip
    with pytest.raises(CalibrationError) as error:
        check_disjoint(one, other)
    assert str(error.value).splitlines()[1:] == [
        f"{other.path}:2: the image and the question of {one.path}:3",
        f"{other.path}:4: the image of {one.path}:1",
        f"{other.path}:5: the image and the question of {one.path}:2",
    ]


def test_a_long_overlap_is_cut_short(tmp_path):
    data = load(tmp_path, *[row(n) for n in range(25)])
    with pytest.raises(CalibrationError, match="and 5 more"):
        check_disjoint(data, data)


def test_written_items_load(tmp_path):
    path = tmp_path / "new" / "items.jsonl"
    assert write_items(path, iter([row(1, question="Größe?\nIn m"), row(2)])) == 2
    assert [item.question for item in Dataset.load(path).items] == ["Größe?\nIn m", "What color?"]
    assert [entry.name for entry in path.parent.iterdir()] == ["items.jsonl"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = save(tmp_path, row(1))
    before = path.read_bytes()

    def rows():
        yield row(2)
        raise CalibrationError("no more")

    with pytest.raises(CalibrationError, match="no more"):
        write_items(path, rows())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["items.jsonl"]


def test_a_picture_with_many_questions_is_decoded_once(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encode(picture()))
    decoded = []
    decode = calibration.decode_image
    monkeypatch.setattr(
        calibration, "decode_image", lambda encoded: decoded.append(1) or decode(encoded)
    )
    data = load(tmp_path, *[row(image="a.png", question=f"Is it {n}?") for n in range(5)])
    assert len({item.content_hash for item in data.items}) == 5
    assert len(decoded) == 1
