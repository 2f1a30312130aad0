import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.wire.json_edit import JSONEditError, find, insert_first, set_member

SPACE = st.text(" \t\r\n", max_size=3)
NAMES = st.sampled_from(["a", "b", "model", "stream_options", "é", 'q"', "\\", "", "{", "x]"]) | st.text(max_size=4)


@st.composite
def literals(draw: st.DrawFn, children: st.SearchStrategy[str] | None = None) -> str:
    """JSON text as others may write it: any spacing, escapes, number forms, repeated names."""
    kinds = ["scalar", "string"] + (["object", "array"] if children is not None else [])
    match draw(st.sampled_from(kinds)):
        case "scalar":
            return draw(
                st.sampled_from(["null", "true", "false", "0", "-1", "1.0", "1e5", "12", "123456789012345678901"])
            )
        case "string":
            return draw(strings())
        case "object":
            assert children is not None
            members = draw(st.lists(st.tuples(strings(NAMES), children), max_size=4))
            written = [f"{draw(SPACE)}{name}{draw(SPACE)}:{draw(SPACE)}{value}{draw(SPACE)}" for name, value in members]
            return "{" + (",".join(written) or draw(SPACE)) + "}"
        case _:
            assert children is not None
            items = [f"{draw(SPACE)}{item}{draw(SPACE)}" for item in draw(st.lists(children, max_size=4))]
            return "[" + (",".join(items) or draw(SPACE)) + "]"


@st.composite
def strings(draw: st.DrawFn, texts: st.SearchStrategy[str] = st.text(max_size=8)) -> str:  # noqa: B008 - a strategy
    text = draw(texts)
    written = json.dumps(text, ensure_ascii=draw(st.booleans()))
    if text and draw(st.booleans()) and ord(text[0]) < 0x10000:
        written = f'"\\u{ord(text[0]):04x}' + json.dumps(text[1:])[1:]
    return written


values = st.recursive(literals(), lambda children: literals(children), max_leaves=12)


@st.composite
def objects(draw: st.DrawFn) -> str:
    members = draw(st.lists(st.tuples(strings(NAMES), values), max_size=5))
    written = [f"{draw(SPACE)}{name}{draw(SPACE)}:{draw(SPACE)}{value}{draw(SPACE)}" for name, value in members]
    return draw(SPACE) + "{" + (",".join(written) or draw(SPACE)) + "}" + draw(SPACE)


def encoded(document: str) -> bytes:
    return document.encode("utf-8", "surrogatepass")


def pairs(document: bytes) -> list[tuple[str, Any]]:
    text = document.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogatepass")
    found = json.loads(text, object_pairs_hook=list)
    assert isinstance(found, list)
    return found


def last(members: list[tuple[str, Any]], name: str) -> int:
    return max((i for i, member in enumerate(members) if member[0] == name), default=-1)


@given(objects(), NAMES)
def test_splicing_what_stands_there_changes_no_byte(document: str, name: str) -> None:
    body = encoded(document)
    place = find(body, name)
    if place is not None:
        assert set_member(body, (name,), body[place]) == body


@given(objects(), NAMES, st.sampled_from([b"true", b'{"x": [1]}', b'"\\u00e9"']), st.booleans())
def test_setting_a_member_changes_only_it(document: str, name: str, value: bytes, bom: bool) -> None:
    body = (b"\xef\xbb\xbf" if bom else b"") + encoded(document)
    before = pairs(body)
    edited = set_member(body, (name,), value)
    after = pairs(edited)
    at = last(before, name)
    place = find(body, name)
    wanted = json.loads(value, object_pairs_hook=list)
    if at < 0:
        assert place is None
        assert after == [*before, (name, wanted)]
    else:
        assert place is not None
        assert json.loads(body[place].decode("utf-8", "surrogatepass"), object_pairs_hook=list) == before[at][1]
        assert after == [*before[:at], (name, wanted), *before[at + 1 :]]
        assert edited == body[: place.start] + value + body[place.stop :]


@given(objects(), objects(), NAMES, NAMES)
def test_a_nested_member_is_edited_in_place(outer: str, inner: str, name: str, nested: str) -> None:
    body = set_member(encoded(outer), (name,), b"0")
    body = set_member(body, (name,), encoded(inner).strip())
    place = find(body, name)
    assert place is not None
    edited = set_member(body, (name, nested), b'["new"]')
    assert edited == body[: place.start] + set_member(body[place], (nested,), b'["new"]') + body[place.stop :]
    found = find(edited, name, nested)
    assert found is not None
    assert edited[found] == b'["new"]'


@given(objects())
def test_a_member_is_put_in_front(document: str) -> None:
    body = encoded(document)
    for start in (b"", b"\xef\xbb\xbf"):
        edited = insert_first(start + body, "brand new", b"1")
        assert edited.startswith(start)
        assert pairs(edited) == [("brand new", 1), *pairs(body)]


@given(st.binary(max_size=40))
def test_what_is_not_json_is_an_error_and_nothing_else(document: bytes) -> None:
    try:
        json.loads(document.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"))
    except ValueError:
        with pytest.raises(JSONEditError):
            find(document, "a")


def test_constants_that_are_not_json_are_refused() -> None:
    with pytest.raises(JSONEditError, match="not JSON"):
        find(b'{"a": NaN}', "a")


def test_missing_objects_on_the_way_are_made() -> None:
    assert set_member(b'{"a":1}', ("b", "c", "d"), b"2") == b'{"a":1,"b":{"c":{"d":2}}}'
    assert set_member(b" { } ", ("b",), b"2") == b' {"b":2 } '


def test_what_is_no_object_is_not_replaced_by_guess() -> None:
    with pytest.raises(JSONEditError, match="a is not a JSON object"):
        set_member(b'{"a":[1]}', ("a", "b"), b"2")
    with pytest.raises(JSONEditError, match="the document is not a JSON object"):
        set_member(b"[1]", ("a",), b"2")
    with pytest.raises(JSONEditError, match="the new value is not JSON"):
        set_member(b"{}", ("a",), b"{")
    assert find(b'{"a":[1]}', "a", "b") is None


def test_the_last_of_a_repeated_name_counts_and_alone_is_changed() -> None:
    body = b'{"a": 1, "b": 2, "\\u0061" : [1,{"a":3}] , "c": "a"}'
    assert set_member(body, ("a",), b"9") == b'{"a": 1, "b": 2, "\\u0061" : 9 , "c": "a"}'


def test_a_repeated_name_is_told_even_where_its_values_are_of_like_length() -> None:
    assert set_member(b'{"a":{"b":1},"a":"xxxx"}', ("a",), b"2") == b'{"a":{"b":1},"a":2}'
    assert set_member(b'{"a":[1],"b":3,"a":[2],"c":4}', ("b",), b"5") == b'{"a":[1],"b":5,"a":[2],"c":4}'


def test_strings_that_only_other_parsers_take_are_no_hindrance() -> None:
    body = b'{"text": "\\ud800 }{", "bad": "\xff\\"}", "a": {"n": 1}}'
    assert set_member(body, ("a",), b"1") == b'{"text": "\\ud800 }{", "bad": "\xff\\"}", "a": 1}'


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_is_bounded(opening: bytes) -> None:
    with pytest.raises(JSONEditError, match="nested too deeply"):
        find(b'{"x":' + opening * 200_000, "a")
