import csv
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtr_vllm.errors import CalibrationError
from vtr_vllm.search.tsv import read_tsv


def read(folder: Path, text: str, required=()):
    path = folder / "table.tsv"
    path.write_bytes(text.encode())
    return read_tsv(path, required)


def test_rows_know_their_line_their_fields_and_what_is_too_much(tmp_path):
    columns, rows = read(tmp_path, 'a\tb\tc\n\n1\t"x\ny"\t3\n4\n5\t6\t7\t8\t9\n')
    assert columns == ("a", "b", "c")
    assert [(row.line, row.values, row.surplus) for row in rows] == [
        (3, {"a": "1", "b": "x\ny", "c": "3"}, 0),
        (5, {"a": "4"}, -2),
        (6, {"a": "5", "b": "6", "c": "7"}, 2),
    ]


def test_a_text_of_several_lines_may_stand_in_any_column(tmp_path):
    for place in range(3):
        fields = ["1", "2", "3"]
        fields[place] = '"one\ntwo\nthree\tand a tab"'
        _, [row, after] = read(tmp_path, "a\tb\tc\n" + "\t".join(fields) + "\n4\t5\t6\n")
        assert row.values["abc"[place]] == "one\ntwo\nthree\tand a tab"
        assert after.line == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column a"),
        ("\n\n", "no column a"),
        ("b\n1\n", "no column a"),
        ("a\ta\n1\t2\n", "table.tsv:1: the column a is there more than once"),
        ('a\tb\n1\t"2\n3\t4\n', "table.tsv:2 cannot be read"),
        ('a\tb\n1\t"2\n3\t4"\n', "table.tsv:2: a quote opens a field that ends in line 3"),
        (
            'a\tb\n1\t"2\n3\t4\n5\t6"\n7\t8\n',
            "table.tsv:2: a quote opens a field that ends in line 4",
        ),
        ('a\tb\n0\t0\n1\t"2" and\n', "table.tsv:3 cannot be read"),
        ('"a\tb\n1\t2\n', "table.tsv:1 cannot be read"),
    ],
)
def test_what_is_no_table_is_refused_with_its_line(tmp_path, text, said):
    with pytest.raises(CalibrationError, match=said):
        read(tmp_path, text, required=("a",))


def test_columns_without_a_name_may_repeat(tmp_path):
    columns, _ = read(tmp_path, "\ta\t\n1\t2\t3\n", required=("a",))
    assert columns == ("", "a", "")


FIELD = st.text(st.characters(codec="utf-8") | st.sampled_from('\t\n\r"'), max_size=10)


@settings(deadline=None)
@given(st.lists(st.tuples(FIELD, FIELD, FIELD), max_size=6))
def test_what_was_written_as_a_table_is_read_whole_or_refused(rows):
    """Refused is only a text that itself looks like rows: nothing tells it from an open quote."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "table.tsv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t").writerows([("a", "b", "c"), *rows])
        if any(sum(part.count("\t") > 1 for part in lines("\t".join(row))) > 1 for row in rows):
            with pytest.raises(CalibrationError, match="lines between look like rows"):
                read_tsv(path, ("a", "b", "c"))
            return
        _, found = read_tsv(path, ("a", "b", "c"))
        assert [tuple(row.values.values()) for row in found] == rows


def lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
