"""A json read element by element, whatever the size of the chunks."""

import json

import pytest

from vssm.data.jsonstream import BadJson, Unparsed, elements, read_element

DATA = {
    "info": {"list": [1, [2], {"a": "]}"}], "text": 'quote " and \\ backslash'},
    "rows": [{"id": number, "name": f"ä{number} é"} for number in range(50)] + [1.5, -12, "x", None, [1, [2]]],
    "empty": [],
    "single": 12345,
    "more": [{"id": 7}],
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
def test_elements_are_those_of_json(tmp_path, chunk, ascii_only, indent):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(DATA, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    found = list(elements(path, ("rows", "empty", "single", "more"), chunk=chunk))
    assert [element.value for element in found if element.section == "rows"] == DATA["rows"]
    assert [element.number for element in found if element.section == "rows"] == list(range(55))
    assert [(element.section, element.number, element.value) for element in found[55:]] == [
        ("single", -1, 12345),
        ("more", 0, {"id": 7}),
    ]
    with path.open("rb") as file:
        for element in found:
            assert read_element(file, element.start, element.end) == element.value


ROWS = [
    {"id": 1, "points": [[1, 2.5, -3e2], [4]], "box": [1, 2]},
    {"points": [], "id": 2},
    {"id": 3, "points": {"size": [1, 2]}},
    {"id": 4, "inner": {"points": [1]}, "points": [2]},
    {"id": 5, "text": 'a "points": [1] }', "points": [3]},
    {"id": 6, "points": ["a]", "}"], "more": {"a": [1]}},
    {"id": 7, "points": None},
    {"id": 8, "name": "é", "points": [1], "last": "}"},
    {"id": 9},
    [1, 2],
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_a_member_that_is_not_parsed(tmp_path, chunk, ascii_only, indent):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"rows": ROWS}, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    found = list(elements(path, ("rows",), "points", chunk))
    assert isinstance(found[0].value["points"], Unparsed) or chunk < 1000
    for element, row in zip(found, ROWS, strict=True):
        if isinstance(row, dict) and isinstance(element.value.get("points"), Unparsed):
            element.value["points"] = json.loads(element.value["points"])
        assert element.value == row
        with path.open("rb") as file:
            assert read_element(file, element.start, element.end) == row


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "data.json"
    path.write_text('{"rows": [1]}', encoding="utf-8-sig")
    assert [element.value for element in elements(path, ("rows",))] == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1, in the file: the file is empty"),
        ("[1]", r"an object \{...\} was expected, got '\['"),
        ('{"rows": [1, 2,\n 3', "line 2, column 3, in 'rows'|line 2, column 3, in element 2 of 'rows'"),
        (
            '{"rows": [{"a": 1},\n{"a": 2, "b',
            "line 2, column 12, in element 1 of 'rows': the file ends here, it is",
        ),
        ('{"rows": [{"a": 1},\n{"a": tru', "line 2, column 7, in element 1 of 'rows': Expecting value"),
        ('{"rows": [1', "in element 0 of 'rows'.*: the file ends here, it is truncated"),
        ('{"rows": [1]', "in the file: the file ends here, it is truncated"),
        ('{"rows": [1],\n"b": nothing}', "line 2, column 6, in 'b': Expecting value"),
        ('{"rows": [{"a": 1} {"a": 2}]}', "in element 0 of 'rows': a comma or ] was expected, got '{'"),
        ('{"rows": [1]} x', "text after the end of the object"),
        ("{3: [1]}", "a name was expected, got 3"),
        ('{"rows": [' + "[" * 100000, "nested too deeply"),
    ],
)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_what_is_wrong_has_a_line_and_a_reason(tmp_path, text, message, chunk):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(BadJson, match=message) as error:
        list(elements(path, ("rows",), "a", chunk))
    assert str(error.value).startswith(f"{path}, line ")


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(b'{"rows": [1, "\xe4"]}')
    with pytest.raises(BadJson, match="line 1, column 15, in element 1 of 'rows': not UTF-8"):
        list(elements(path, ("rows",)))
