import base64
import csv
import io
import json
import tempfile
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.vtr_vllm.photo.cutouts import write_cutouts
from vtr_vllm.demo import conversation, sample
from vtr_vllm.errors import CalibrationError
from vtr_vllm.photo.scenes import LIST, SPLITS, scene
from vtr_vllm.search.answer_metrics import score
from vtr_vllm.search.calibration import Dataset, check_disjoint
from vtr_vllm.search.converters import from_demo, from_llava, from_photo, from_vlmevalkit


def encode(shade: int, form: str = "PNG", side: int | tuple[int, int] = 4) -> bytes:
    buffer = io.BytesIO()
    size = (side, side) if isinstance(side, int) else side
    Image.new("RGB", size, (shade, 0, 0)).save(buffer, form)
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

    def convert(entries, metric="exact_match", every_turn=False):
        (tmp_path / "llava.json").write_text(json.dumps(entries))
        out = tmp_path / "data" / "items.jsonl"
        return out, from_llava(tmp_path / "llava.json", root, out, metric, every_turn)

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
    assert (two.id, two.question, two.answers) == ("entry-2", "Size?", ("small",))
    assert one.metric == two.metric == "exact_match"
    assert one.load_images()[0].getpixel((0, 0)) == (1, 0, 0)
    assert two.data_uris()[0].startswith("data:image/jpeg;base64,")


def test_llava_every_turn_is_asked_with_what_was_said(llava):
    told = turns("Hello.", "Hi.", "<image>\nWhat is it?", " Red\n", "Why?", "So.", "And?")
    system = [{"from": "system", "value": "One word."}]
    out, report = llava(
        [
            {"id": "a", "image": "train/1.png", "conversations": system + told},
            {
                "id": "b",
                "image": "2.jpg",
                "conversations": turns("Size?", "small", "Sure?", "Yes."),
            },
            {"id": "mute", "image": "2.jpg", "conversations": turns("Hello.", "Hi.", "<image>?")},
        ],
        every_turn=True,
    )
    assert (report.written, list(report.skipped.values())) == (4, [("mute",)])
    items = Dataset.load(out).items
    assert [item.id for item in items] == ["a, turn 2", "a, turn 3", "b, turn 1", "b, turn 2"]
    assert [item.kind for item in items] == ["turn 2", "turn 3", "turn 1", "turn 2"]
    about, later, alone, last = items
    assert about.load_images()[0].getpixel((0, 0)) == (1, 0, 0)
    assert [(turn.image, turn.question, turn.answer) for turn in about.history] == [
        (None, "One word.\nHello.", "Hi.")
    ]
    assert later.image is None
    assert later.image_hashes == about.image_hashes
    assert [turn.answer for turn in later.history] == ["Hi.", "Red"]
    assert (later.question, later.answers) == ("Why?", ("So.",))
    assert (alone.history, last.question) == ((), "Sure?")


@pytest.mark.parametrize("every_turn", [True, False])
def test_llava_an_unanswered_question_before_the_picture_is_nothing_said(llava, every_turn):
    told = [{"from": "human", "value": "Hello?"}, *turns("<image>\nWhat is it?", "Red")]
    entry = {"id": "a", "image": "2.jpg", "conversations": told}
    out, _ = llava([entry], every_turn=every_turn)
    (item,) = Dataset.load(out).items
    assert (item.question, item.answers, item.history) == ("What is it?", ("Red",), ())


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
    assert one.load_images()[0].getpixel((0, 0)) == (1, 0, 0)


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
        "an image that is not read": ("6",),
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
        (b"\xff\xfe", "cannot be read as TSV(.|\n)*in UTF-8"),
        (b"", "has no column index, image, question, answer"),
    ):
        broken.write_bytes(content)
        with pytest.raises(CalibrationError, match=reason):
            from_vlmevalkit(broken, tmp_path / "out.jsonl", "contains")


def test_tsv_a_list_of_one_image_is_that_image(tsv):
    out, _ = tsv({"image": f"['{cell(encode(1))}']", "question": "Q", "answer": "x"})
    assert Dataset.load(out).items[0].load_images()[0].getpixel((0, 0)) == (1, 0, 0)


# A quote that opens a field and is not closed


ROWS = 6


def table(tmp_path: Path, spoilt: dict[int, str], *, columns=("question", "answer")) -> Path:
    """Six rows, in some of which a question is replaced; written as an editor does, without quoting."""
    lines = ["\t".join(("index", "image", *columns))]
    for n in range(ROWS):
        fields = {"question": spoilt.get(n, f"What is {n}?"), "answer": "box", "comment": "none"}
        lines.append("\t".join([str(n), cell(encode(n)), *(fields[c] for c in columns)]))
    path = tmp_path / "bench.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("spoilt", "line"),
    [
        ({1: '"Where is the box?'}, 3),  # to the end of the file
        ({5: '"Where is the box?'}, 7),  # in the last row
        ({1: '"Where?', 4: 'stop" is written where?'}, 3),  # text behind the closing quote
        ({1: '"Where?', 4: 'Who wrote "stop"'}, 3),  # closed at the end of a field: well-formed
        ({1: '"Where?', 2: 'Who wrote "stop"'}, 3),  # the same, with no row between
        ({2: '"stop" is written where?'}, 4),  # a quotation that opens a field
    ],
)
@pytest.mark.parametrize("columns", [("question", "answer"), ("answer", "question", "comment")])
def test_a_quote_that_is_not_closed_is_refused_with_its_line(tmp_path, spoilt, line, columns):
    path = table(tmp_path, spoilt, columns=columns)
    with pytest.raises(CalibrationError, match=rf"bench.tsv:{line}\b.*(close|double)"):
        from_vlmevalkit(path, tmp_path / "out.jsonl", "exact_match")
    assert not (tmp_path / "out.jsonl").exists()


def test_quotes_inside_a_field_are_its_text(tmp_path):
    path = table(tmp_path, {1: 'Is it 5" wide?', 3: 'Who wrote "stop"'})
    from_vlmevalkit(path, tmp_path / "out.jsonl", "exact_match", open_instruction="")
    items = Dataset.load(tmp_path / "out.jsonl").items
    assert [item.question for item in items][1::2] == [
        'Is it 5" wide?',
        'Who wrote "stop"',
        "What is 5?",
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_a_byte_order_mark_change_nothing(tmp_path, end, mark):
    path = table(tmp_path, {2: '"One line\nand ""another"", with\ta tab"'})
    path.write_bytes(mark + path.read_text().replace("\n", end).encode() + end.encode())
    from_vlmevalkit(path, tmp_path / "out.jsonl", "exact_match", open_instruction="")
    items = Dataset.load(tmp_path / "out.jsonl").items
    assert [item.id for item in items] == [str(n) for n in range(ROWS)]
    assert items[2].question == f'One line{end}and "another", with\ta tab'


def test_a_row_of_another_width_is_left_out(tmp_path):
    path = table(tmp_path, {1: "What\tis it?", 3: "What\nis it?"})
    report = from_vlmevalkit(path, tmp_path / "out.jsonl", "exact_match")
    assert [item.id for item in Dataset.load(tmp_path / "out.jsonl").items] == ["0", "2", "4", "5"]
    assert report.skipped == {
        "more fields than columns": ("1",),
        "fewer fields than columns": ("3", "is it?"),
    }


def test_columns_that_are_there_twice_are_refused(tmp_path):
    path = table(tmp_path, {}, columns=("question", "answer", "question"))
    with pytest.raises(CalibrationError, match="column question is there more than once"):
        from_vlmevalkit(path, tmp_path / "out.jsonl", "exact_match")


TEXT = st.text(
    st.characters(codec="utf-8") | st.sampled_from("\t\n\r\"'\0\ufeff\u2028\x85"), max_size=12
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"index": TEXT, "question": TEXT, "answer": TEXT, "A": TEXT, "category": TEXT},
            optional={"image": st.sampled_from(["", "0", "1", "nan"]) | TEXT},
        ),
        min_size=1,
        max_size=6,
    )
)
def test_of_any_table_that_is_written_right_every_row_is_written_or_named(rows):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, out = folder / "bench.tsv", folder / "bench.jsonl"
        columns = ["index", "image", "question", "answer", "A", "category"]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, delimiter="\t")
            writer.writeheader()
            writer.writerows({"image": cell(encode(n)), **row} for n, row in enumerate(rows))
        check_conversion(lambda: from_vlmevalkit(path, out, "contains"), out, len(rows))


def check_conversion(convert, out: Path, count: int) -> None:
    """What is written, the search loads; and every entry is written or named."""
    try:
        report = convert()
    except CalibrationError:
        assert not out.exists()
        return
    left_out = sum(len(ids) for ids in report.skipped.values())
    assert report.written + left_out == count
    assert len(Dataset.load(out)) == report.written
    str(report).encode()


# Ids


@pytest.mark.parametrize(
    ("given_ids", "written"),
    [
        (["a", "", "b"], ["a", "entry-2", "b"]),
        ([None, None], ["entry-1", "entry-2"]),
        (["a", "a", "a#2"], ["a", "a#2", "a#2#2"]),
        (["a", "a#2", "a"], ["a", "a#2", "a#3"]),
        (["entry-2", " "], ["entry-2", "entry-2#2"]),
        ([7, "7", 7.0, True], ["7", "7#2", "7.0", "True"]),
        ([[1], {"a": 1}], ["entry-1", "entry-2"]),
        (["A", "a", "\u00e9", "e\u0301"], ["A", "a", "\u00e9", "e\u0301"]),  # case, Unicode form
        (["a\nb", "a\0b", "#2", "../a"], ["a\nb", "a\0b", "#2", "../a"]),
    ],
)
def test_llava_ids_are_made_where_there_are_none_and_told_apart(llava, given_ids, written):
    entries = [
        {"id": given_id, "image": "2.jpg", "conversations": turns(f"Is it {n}?", "yes")}
        for n, given_id in enumerate(given_ids)
    ]
    out, report = llava(entries)
    assert report.skipped == {}
    assert [item.id for item in Dataset.load(out).items] == written


def test_tsv_ids_are_made_where_there_are_none_and_told_apart(tsv):
    rows = [
        {"index": index, "image": cell(encode(n)), "question": "Q", "answer": "x"}
        for n, index in enumerate(["0", "", "", "3-1", "nan", " 0 ", "line-3"])
    ]
    out, _ = tsv(*rows)
    ids = [item.id for item in Dataset.load(out).items]
    assert ids == ["0", "line-3", "line-4", "3-1", "line-6", "0#2", "line-3#2"]


def test_tsv_a_reference_to_an_index_that_is_there_twice_is_left_out(tsv):
    row = {"question": "Q", "answer": "x"}
    _, report = tsv(
        row | {"index": "a", "image": cell(encode(1))},
        row | {"index": "a", "image": cell(encode(2))},
        row | {"index": "b", "image": "a"},
    )
    assert report.skipped == {"an image reference to an index that several rows have": ("b",)}


# LLaVA-style JSON as people have it


def read(llava, *values: str, **entry) -> tuple[str, tuple[str, ...]]:
    """The question and answers of one entry's conversation."""
    out, report = llava([{"image": "2.jpg", "conversations": turns(*values)} | entry])
    assert report.skipped == {}
    [item] = Dataset.load(out).items
    return item.question, item.answers


def test_llava_an_image_in_a_list_of_one_is_that_image(llava):
    assert read(llava, "<image>\nWhich?", "B", image=["2.jpg"]) == ("Which?", ("B",))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ([], "no image"),
        ([""], "no image"),
        ([None], "no image"),
        (["2.jpg", "train/1.png"], "several images"),
        ([["2.jpg"]], "an image that is no path"),
        ({"path": "2.jpg"}, "an image that is no path"),
        (7, "an image that is no path"),
        ("train", "no such image file"),
        ("2.jpg\0", "no such image file"),
        ("x" * 5000, "no such image file"),
        ("\ud800.jpg", "no such image file"),
        ("http://example.org/2.jpg", "no such image file"),
    ],
)
def test_llava_an_image_that_is_none_is_left_out_for_a_true_reason(llava, image, reason):
    good = {"id": "good", "image": "2.jpg", "conversations": turns("<image>\nWhich?", "B")}
    _, report = llava([good, {"id": "odd", "image": image, "conversations": turns("Q?", "A")}])
    [(said, ids)] = report.skipped.items()
    assert (said.startswith(reason), ids) == (True, ("odd",))


@pytest.mark.parametrize(
    "name",
    ["with space.png", "\u00fcber 100%.png", "u\u0308ber.png", "../up.png", "a'\"b.png", "%20.png"],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_llava_paths_lead_to_their_file(llava, tmp_path, name, absolute):
    (tmp_path / "coco" / name).write_bytes(encode(99))
    image = str(tmp_path / "coco" / name) if absolute else name
    out, _ = llava([{"image": image, "conversations": turns("<image>\nWhich?", "B")}])
    [item] = Dataset.load(out).items
    assert item.load_images()[0].getpixel((0, 0)) == (99, 0, 0)


def test_llava_a_path_through_a_link_leads_to_its_file(llava, tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "beside.png").write_bytes(encode(98))
    (tmp_path / "coco" / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    out, _ = llava([{"image": "link/../beside.png", "conversations": turns("Which?", "B")}])
    assert Dataset.load(out).items[0].load_images()[0].getpixel((0, 0)) == (98, 0, 0)


@pytest.mark.parametrize(
    ("values", "read_as"),
    [
        (("Hello!", "Hi!", "<image>\nWhat is in it?", "box"), ("What is in it?", "box")),
        (("Hello!", "Hi!", "What is in it? <image>", "box"), ("What is in it?", "box")),
        (("<image>\nUp?", "box", "And?", "no"), ("Up?", "box")),
        (("Hint.\n<image>\nWhat?", "box"), ("Hint.\n\nWhat?", "box")),
        (
            ("Look at <image> and say what it is.", "box"),
            ("Look at the image and say what it is.", "box"),
        ),
        (("What is in <image>?", "box"), ("What is in the image?", "box")),
        (("What is here: <image>", "box"), ("What is here:", "box")),
        (("What is it?", "box", "Why?", "So."), ("What is it?", "box")),
    ],
)
def test_llava_asks_about_the_picture(llava, values, read_as):
    question, answer = read_as
    assert read(llava, *values) == (question, (answer,))


def test_llava_a_system_turn_stands_before_the_question(llava):
    conversations = [{"from": "system", "value": "Be brief."}, *turns("<image>\nWhat?", "box")]
    assert read(llava, conversations=conversations) == ("Be brief.\nWhat?", ("box",))


@pytest.mark.parametrize(
    ("conversations", "reason"),
    [
        (turns("<image>\nA?", "a", "<image>\nB?", "b"), "several images"),
        (turns("Hello!", "Hi!", "<image>\nWhat?"), "no question of a human"),
        (turns("<image>\nWhat?", "<image>")[:1] * 2, "several images"),
        ([{"from": "human", "value": ["<image>"]}, *turns("x")], "no question of a human"),
        ([{"from": "human"}], "no question of a human"),
        (["<image>\nWhat?", "box"], "no question of a human"),
        ([], "no question of a human"),
        ({"from": "human"}, "no question of a human"),
        (turns("<image>", "box"), "no question"),
        (turns("<image>\nWhat?", " "), "answers that exact_match cannot use"),
        (turns("<image>\nWhat \ud800?", "box"), "what the search does not load"),
    ],
)
def test_llava_other_conversations_are_left_out_by_name(llava, conversations, reason):
    good = {"id": "good", "image": "2.jpg", "conversations": turns("<image>\nWhich?", "B")}
    out, report = llava(
        [good, {"id": "odd\ud800", "image": "2.jpg", "conversations": conversations}]
    )
    assert [item.id for item in Dataset.load(out).items] == ["good"]
    [(said, ids)] = report.skipped.items()
    assert (said.startswith(reason), ids) == (True, ("odd\ud800",))
    assert r"odd\ud800" in str(report)


def test_llava_pictures_that_the_search_would_refuse_are_left_out_with_the_first_cause(
    llava, tmp_path
):
    for name, data in (
        ("copy.png", encode(1)),  # the pixels of train/1.png, in another file
        ("line.png", encode(5, side=(201, 1))),
        ("cut.png", encode(5, side=300)[:200]),
        ("deep.tiff", encode(5, "TIFF")),
    ):
        (tmp_path / "coco" / name).write_bytes(data)
    out, report = llava(
        [
            {"id": image, "image": image, "conversations": turns("<image>\nWhich?", "B")}
            for image in ("train/1.png", "copy.png", "line.png", "cut.png", "deep.tiff")
        ]
    )
    assert [item.id for item in Dataset.load(out).items] == ["train/1.png"]
    assert report.skipped == {
        "image and question of an earlier entry": ("copy.png",),
        "an image that is not read": ("line.png", "cut.png", "deep.tiff"),
    }
    assert "line.png: the image has 201 x 1 pixels" in str(report)


def test_llava_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "1.png").write_bytes(encode(1))
    entries = [{"image": "1.png", "conversations": turns("<image>\nWhich?", "B")}]
    source = tmp_path / "bom.json"
    source.write_bytes(b"\xef\xbb\xbf" + json.dumps(entries).encode())
    assert from_llava(source, tmp_path, tmp_path / "out.jsonl", "contains").written == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps([{}]).encode("utf-16"), "in UTF-8"),
        (b'[{"id": "caf\xe9"}]', "in UTF-8"),
        (b"[{}]\0", "cannot be read as JSON"),
        (b"{}\n{}\n", "one JSON list"),
        (b'[{"image": "1.png", "image": "2.png"}]', "a key is given twice among image"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'[{"id": ' + b"9" * 5000 + b"}]", "cannot be read as JSON"),
    ],
)
def test_json_that_cannot_be_read_says_why(tmp_path, content, said):
    (tmp_path / "odd.json").write_bytes(content)
    with pytest.raises(CalibrationError, match=said):
        from_llava(tmp_path / "odd.json", tmp_path, tmp_path / "out.jsonl", "contains")


def test_a_file_is_not_converted_over_itself(llava, tsv, tmp_path):
    llava([{"image": "2.jpg", "conversations": turns("Which?", "B")}])
    source = tmp_path / "llava.json"
    before = source.read_bytes()
    (tmp_path / "same.json").symlink_to(source)
    with pytest.raises(CalibrationError, match="is the file to be converted"):
        from_llava(source, tmp_path / "coco", tmp_path / "same.json", "contains")
    assert source.read_bytes() == before


ANY = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
SAID = st.text(st.characters() | st.sampled_from(" \n\t.?\0"), max_size=8)
MARKED = st.builds(lambda a, m, b: a + m + b, SAID, st.sampled_from(["<image>", "", "\n"]), SAID)
TURN = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "system"]), "value": MARKED | ANY}
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["a", "a#2", "", None]) | ANY,
        "image": st.sampled_from(["1.png", ["1.png"], "../x/1.png", "copy.png"]) | ANY,
        "conversations": st.lists(TURN, max_size=4) | st.just(turns("<image>\nWhat?", "B")) | ANY,
    },
)


@settings(deadline=None, max_examples=100)
@given(st.lists(ENTRY, max_size=6), st.sampled_from(["contains", "option_letter"]))
def test_of_any_json_every_entry_is_written_or_named(entries, metric):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "x"
        root.mkdir()
        for file in ("1.png", "copy.png"):
            (root / file).write_bytes(encode(1))
        source, out = root / "llava.json", root / "out" / "items.jsonl"
        source.write_text(json.dumps(entries))
        check_conversion(lambda: from_llava(source, root, out, metric), out, len(entries))


def test_the_demo_gives_its_samples(tmp_path):
    out = tmp_path / "calibration.jsonl"
    assert from_demo("calibration", 6, out).written == 6
    data = Dataset.load(out)
    for index, item in enumerate(data.items):
        drawn = sample("calibration", index)
        assert item.id == f"calibration-{index}"
        assert (item.question, item.kind) == (drawn.question, drawn.kind)
        assert score(item.metric, drawn.answer, item.answers) == 1.0
        assert item.load_images()[0].tobytes() == drawn.image.tobytes()
    assert {path.parent.name for path in tmp_path.rglob("*.png")} == {"calibration-images"}


def test_the_demo_gives_a_conversation_turn_by_turn(tmp_path):
    out = tmp_path / "talks.jsonl"
    drawn = [conversation("test-talk", index) for index in range(8)]
    assert from_demo("test-talk", 8, out).written == sum(len(talk.turns) for talk in drawn)
    items = iter(Dataset.load(out).items)
    for talk in drawn:
        scenes = iter(talk.scenes)
        seen = []
        for number, turn in enumerate(talk.turns, 1):
            item = next(items)
            seen += [next(scenes).pixels.tobytes()] if turn.brings else []
            assert [image.tobytes() for image in item.load_images()] == seen
            assert item.kind == f"turn {number}"
            before = [(t.question.text, t.question.answer) for t in talk.turns[: number - 1]]
            assert [(t.question, t.answer) for t in item.history] == before
            assert (item.question, item.answers) == (turn.question.text, (turn.question.answer,))


def test_the_splits_of_the_demo_do_not_overlap(tmp_path):
    splits = ("calibration", "test", "calibration-talk", "test-talk")
    for split in splits:
        from_demo(split, 20, tmp_path / f"{split}.jsonl")
    for pair in combinations(splits, 2):
        check_disjoint(*(Dataset.load(tmp_path / f"{split}.jsonl") for split in pair))


def test_what_the_demo_does_not_have_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match="unknown split 'dev'"):
        from_demo("dev", 3, tmp_path / "items.jsonl")
    with pytest.raises(CalibrationError, match="nothing to write"):
        from_demo("test", 0, tmp_path / "items.jsonl")
    assert not (tmp_path / "items.jsonl").exists()


def test_the_photo_model_gives_a_question_about_each_scene(tmp_path):
    art = write_cutouts(tmp_path / "parts")
    for split in SPLITS:
        out = tmp_path / f"{split}.jsonl"
        assert from_photo(split, 8, tmp_path / "parts", out).written == 8
        data = Dataset.load(out)
        for index, item in enumerate(data.items):
            drawn = scene(art, split, index)
            assert (item.kind, item.question, item.answers[0]) == drawn.short(index)[:3]
            assert item.kind != LIST
            assert item.load_images()[0].tobytes() == drawn.image.tobytes()
    for pair in combinations(SPLITS, 2):
        check_disjoint(*(Dataset.load(tmp_path / f"{split}.jsonl") for split in pair))
    with pytest.raises(CalibrationError, match="unknown split 'dev'; there are train, calibration"):
        from_photo("dev", 8, tmp_path / "parts", tmp_path / "dev.jsonl")


def test_a_moved_folder_still_loads(tmp_path):
    from_demo("test", 2, tmp_path / "a" / "items.jsonl")
    Path(tmp_path / "a").rename(tmp_path / "b")
    assert len(Dataset.load(tmp_path / "b" / "items.jsonl")) == 2
