import base64
import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from vtr_vllm.demo import sample
from vtr_vllm.errors import CalibrationError
from vtr_vllm.search.calibration import Dataset, check_disjoint
from vtr_vllm.search.converters import from_demo, from_llava, from_vlmevalkit
from vtr_vllm.search.metrics import score


def encode(shade: int, form: str = "PNG", side: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(buffer, form)
    return buffer.getvalue()


def turns(*values: str) -> list[dict[str, str]]:
    return [
        {"from": who, "value": value}
        for who, value in zip(("human", "gpt") * 4, values, strict=False)
    ]


@pytest.fixture
def llava(tmp_path):
    """Write entries as LLaVA-style JSON beside two pictures; return the conversion of them."""
    root = tmp_path / "coco"
    (root / "train").mkdir(parents=True)
    (root / "train" / "1.png").write_bytes(encode(1))
    (root / "2.jpg").write_bytes(encode(2, "JPEG"))

    def convert(entries, metric="exact_match"):
        (tmp_path / "llava.json").write_text(json.dumps(entries))
        out = tmp_path / "data" / "items.jsonl"
        return out, from_llava(tmp_path / "llava.json", root, out, metric)

    return convert


def test_llava_takes_the_first_question(llava):
    out, report = llava(
        [
            {
                "id": "a",
                "image": "train/1.png",
                "conversations": turns("<image>\nWhat is it?\nOne word.", "Red\n", "Why?", "So."),
            },
            {"image": "2.jpg", "conversations": turns("Size?\n<image>", "small")},
        ]
    )
    assert (report.written, report.skipped) == (2, {})
    one, two = Dataset.load(out).items
    assert (one.id, one.question, one.answers) == ("a", "What is it?\nOne word.", ("Red",))
    assert (two.id, two.question, two.answers) == ("2", "Size?", ("small",))
    assert one.metric == two.metric == "exact_match"
    assert one.load_image().getpixel((0, 0)) == (1, 0, 0)
    assert two.data_uri().startswith("data:image/jpeg;base64,")


def test_llava_reports_every_entry_left_out(llava):
    good = turns("<image>\nWhich?", "B")
    out, report = llava(
        [
            {"id": "good", "image": "2.jpg", "conversations": good},
            {"id": "text", "conversations": good},
            {"id": "more text", "image": None, "conversations": good},
            {"id": "pair", "image": ["2.jpg", "2.jpg"], "conversations": good},
            {"id": "two", "image": "2.jpg", "conversations": turns("<image> <image>\nSame?", "A")},
            {"id": "gone", "image": "3.jpg", "conversations": good},
            {"id": "mute", "image": "2.jpg", "conversations": turns("<image>\nWhich?")},
            {"id": "odd", "image": "2.jpg", "conversations": turns("Which?", "B")[::-1]},
            {"id": "none", "image": "2.jpg"},
            {"id": "blank", "image": "2.jpg", "conversations": turns("<image>\n", "A")},
            {"id": "long", "image": "2.jpg", "conversations": turns("<image>\nWhat?", "A cat.")},
            {"id": "again", "image": "2.jpg", "conversations": turns("Which? <image>", "C")},
        ],
        metric="option_letter",
    )
    assert [item.id for item in Dataset.load(out).items] == ["good"]
    assert report.written == 1
    assert {
        reason.replace(str(out.parents[1]), "."): ids for reason, ids in report.skipped.items()
    } == {
        "no image": ("text", "more text"),
        "several images": ("pair", "two"),
        "no such image file under ./coco": ("gone",),
        "no question of a human with an answer": ("mute", "odd", "none"),
        "no question": ("blank",),
        "answers that option_letter cannot use": ("long",),
        "image and question of an earlier entry": ("again",),
    }
    assert "1 items written\n2 left out: no image (text, more text)\n" in str(report)


def test_llava_ids_that_repeat_are_told_apart(llava):
    out, _ = llava(
        [
            {"id": "a", "image": "2.jpg", "conversations": turns(f"Is it {n}?", "yes")}
            for n in range(3)
        ]
    )
    assert [item.id for item in Dataset.load(out).items] == ["a", "a#2", "a#3"]


@pytest.mark.parametrize("content", [{"id": 1}, [1], "text"])
def test_llava_of_another_form_is_refused(llava, content):
    with pytest.raises(CalibrationError, match="a JSON list of objects"):
        llava(content)


def test_llava_with_nothing_to_use_is_refused_with_the_reasons(llava, tmp_path):
    with pytest.raises(
        CalibrationError, match=r"nothing to write(.|\n)*1 left out: no image \(7\)"
    ):
        llava([{"id": 7}])
    with pytest.raises(CalibrationError, match="unknown metric 'bleu'"):
        llava([], metric="bleu")
    with pytest.raises(CalibrationError, match="cannot be read as JSON"):
        from_llava(tmp_path / "gone.json", tmp_path, tmp_path / "items.jsonl", "contains")


COLUMNS = ["index", "image", "question", "hint", "A", "B", "C", "answer", "category"]


def cell(encoded: bytes) -> str:
    return base64.b64encode(encoded).decode()


@pytest.fixture
def tsv(tmp_path):
    """Write rows (by column) as VLMEvalKit's TSV; return the conversion of them."""

    def convert(*rows, metric="exact_match", columns=COLUMNS, **options):
        path = tmp_path / "bench.tsv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="\t", restval="")
            writer.writeheader()
            writer.writerows({"index": n, **row} for n, row in enumerate(rows))
        out = tmp_path / "bench.jsonl"
        return out, from_vlmevalkit(path, out, metric, **options)

    return convert


def test_tsv_choices_get_the_prompt_of_vlmevalkit(tsv):
    out, report = tsv(
        {
            "image": cell(encode(1)),
            "question": "Which one?",
            "hint": "Look left.",
            "A": "a cat",
            "B": "nan",
            "C": "a\tdog",
            "answer": "C",
            "category": "animals",
        },
        {"image": cell(encode(2)), "question": "And here?", "A": "x", "B": "y", "answer": "A"},
    )
    assert (report.written, report.skipped) == (2, {})
    one, two = Dataset.load(out).items
    assert one.question == (
        "Hint: Look left.\nQuestion: Which one?\nOptions:\nA. a cat\nC. a\tdog\n"
        "Please select the correct answer from the options above."
    )
    assert two.question.startswith("Question: And here?\nOptions:\nA. x\nB. y\n")
    assert (one.id, one.answers, one.metric, one.kind) == ("0", ("C",), "option_letter", "animals")
    assert two.kind is None
    assert one.load_image().getpixel((0, 0)) == (1, 0, 0)


def test_tsv_open_questions_get_the_given_metric(tsv):
    rows = (
        {
            "image": cell(encode(1)),
            "question": "What?",
            "hint": "h",
            "answer": "['a cat', 'cat', 3]",
        },
        {"image": cell(encode(2)), "question": "What?", "answer": "[a dog"},
    )
    out, _ = tsv(*rows, metric="vqa_accuracy")
    one, two = Dataset.load(out).items
    assert one.question == "What?\nAnswer the question using a single word or phrase."
    assert (one.answers, one.metric) == (("a cat", "cat", "3"), "vqa_accuracy")
    assert two.answers == ("[a dog",)
    out, _ = tsv(*rows, open_instruction="")
    assert Dataset.load(out).items[0].question == "What?"


def test_tsv_instructions_can_be_changed(tsv):
    row = {"image": cell(encode(1)), "question": "What?", "A": "x", "answer": "A"}
    out, _ = tsv(row, choice_instruction="Answer with the letter.")
    question = Dataset.load(out).items[0].question
    assert question == "Question: What?\nOptions:\nA. x\nAnswer with the letter."


def test_tsv_images_are_large_fields_references_and_files_of_their_type(tsv):
    noise = io.BytesIO()
    Image.effect_noise((500, 500), 80).save(noise, "PNG")
    large = cell(noise.getvalue())
    assert len(large) > 131_072  # the usual limit of the csv module
    limit = csv.field_size_limit()
    out, _ = tsv(
        {"index": 10, "image": "30", "question": "Before?", "answer": "x"},
        {"index": 30, "image": large, "question": "Here?", "answer": "y"},
        {"index": 40, "image": cell(encode(1, "JPEG")), "question": "Other?", "answer": "z"},
    )
    assert csv.field_size_limit() == limit
    before, here, other = Dataset.load(out).items
    assert before.image == here.image
    assert before.image.parent == out.parent / "bench-images"
    assert before.image.read_bytes() == noise.getvalue()
    assert (here.image.suffix, other.image.suffix) == (".png", ".jpeg")
    assert len(list(here.image.parent.iterdir())) == 2


def test_tsv_reports_every_row_left_out(tsv):
    image = cell(encode(1))
    good = {"image": image, "question": "Q", "A": "x", "B": "y", "answer": "A"}
    out, report = tsv(
        good,
        good | {"image": ""},
        good | {"image": "99"},
        good | {"image": "1"},
        good | {"image": f"['{image}', '{image}']"},
        good | {"image": "!" * 100},
        good | {"image": cell(b"no image " * 20)},
        good | {"answer": "C"},
        good | {"answer": ""},
        good | {"A": "", "B": "", "answer": ""},
        good | {"A": "", "B": "", "answer": "[]"},
        good | {"question": " "},
        good,
    )
    assert [item.id for item in Dataset.load(out).items] == ["0"]
    assert report.skipped == {
        "no image": ("1",),
        "an image reference to a row without one": ("2", "3"),
        "several images": ("4",),
        "an image that is not valid base64": ("5",),
        "an image that does not decode": ("6",),
        "an answer that is none of the options": ("7", "8"),
        "no answer": ("9",),
        "answers that exact_match cannot use": ("10",),
        "no question": ("11",),
        "image and question of an earlier entry": ("12",),
    }


def test_tsv_of_another_form_is_refused(tsv, tmp_path):
    row = {"question": "Q", "answer": "A"}
    with pytest.raises(CalibrationError, match="has no column image"):
        tsv(row, columns=["index", "question", "answer"])
    with pytest.raises(CalibrationError, match=r"nothing to write(.|\n)*1 left out: no image"):
        tsv(row)
    with pytest.raises(CalibrationError, match="unknown metric"):
        tsv(row, metric="bleu")
    broken = tmp_path / "broken.tsv"
    for content, reason in (
        (b"index\timage\tquestion\tanswer\n1\ta\tb\tc\td\n", "more fields than columns"),
        (b"\xff\xfe", "cannot be read as TSV"),
        (b"", "has no column index, image, question, answer"),
    ):
        broken.write_bytes(content)
        with pytest.raises(CalibrationError, match=reason):
            from_vlmevalkit(broken, tmp_path / "out.jsonl", "contains")


def test_the_demo_gives_its_samples(tmp_path):
    out = tmp_path / "calibration.jsonl"
    assert from_demo("calibration", 6, out).written == 6
    data = Dataset.load(out)
    for index, item in enumerate(data.items):
        drawn = sample("calibration", index)
        assert item.id == f"calibration-{index}"
        assert (item.question, item.kind) == (drawn.question, drawn.kind)
        assert score(item.metric, drawn.answer, item.answers) == 1.0
        assert item.load_image().tobytes() == drawn.image.tobytes()
    assert {path.parent.name for path in tmp_path.rglob("*.png")} == {"calibration-images"}


def test_the_splits_of_the_demo_do_not_overlap(tmp_path):
    for split in ("calibration", "test"):
        from_demo(split, 20, tmp_path / f"{split}.jsonl")
    check_disjoint(*(Dataset.load(tmp_path / f"{s}.jsonl") for s in ("calibration", "test")))


def test_what_the_demo_does_not_have_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match="unknown split 'dev'"):
        from_demo("dev", 3, tmp_path / "items.jsonl")
    with pytest.raises(CalibrationError, match="nothing to write"):
        from_demo("test", 0, tmp_path / "items.jsonl")
    assert not (tmp_path / "items.jsonl").exists()


def test_a_moved_folder_still_loads(tmp_path):
    from_demo("test", 2, tmp_path / "a" / "items.jsonl")
    Path(tmp_path / "a").rename(tmp_path / "b")
    assert len(Dataset.load(tmp_path / "b" / "items.jsonl")) == 2
