"""`ObjectID`: what is one, and what it is equal to."""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import pytest

import plasma
from plasma import ObjectID


def test_it_is_made_of_20_bytes_and_gives_them_back() -> None:
    name = bytes(range(100, 120))
    assert ObjectID(name).binary() == name
    assert type(ObjectID(name).binary()) is bytes
    assert bytes(ObjectID(name)) == name


@pytest.mark.parametrize(
    "wrong",
    [b"", 19 * b"a", 21 * b"a", 20 * "a", bytearray(20), memoryview(bytes(20)), None, 5, [0] * 20],
)
def test_everything_but_20_bytes_is_a_value_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        ObjectID(wrong)


def test_the_text_of_the_error_has_the_size_that_was_given() -> None:
    with pytest.raises(ValueError, match="19 bytes"):
        ObjectID(19 * b"a")


def test_its_text_is_that_of_the_original() -> None:
    # Programs look for this in logs and in the output of `list`.
    assert repr(ObjectID(20 * b"a")) == "ObjectID(6161616161616161616161616161616161616161)"
    assert str(ObjectID(20 * b"\xff")) == f"ObjectID({20 * 'ff'})"
    assert ObjectID(20 * b"\x0a").hex() == 20 * "0a"


def test_equal_bytes_make_equal_ids_with_equal_hashes() -> None:
    one, same, other = ObjectID(20 * b"a"), ObjectID(20 * b"a"), ObjectID(19 * b"a" + b"b")
    assert one == same
    assert (one != same) is False
    assert hash(one) == hash(same)
    assert one != other
    assert {one: 1}[same] == 1
    assert len({one, same, other}) == 2


@pytest.mark.parametrize("other", [20 * b"a", 40 * "6", None, 5, object()])
def test_it_is_not_equal_to_anything_else(other: object) -> None:
    assert ObjectID(20 * b"a") != other
    assert (ObjectID(20 * b"a") == other) is False


def test_ids_are_ordered_as_their_bytes() -> None:
    ids = [ObjectID(bytes([last]).rjust(20, b"\0")) for last in (3, 255, 0, 128)]
    assert [id.binary()[-1] for id in sorted(ids)] == [0, 3, 128, 255]


def test_random_ids_differ() -> None:
    ids = {ObjectID.from_random() for _ in range(10_000)}
    assert len(ids) == 10_000
    # Each of the 20 bytes is random, not only some of them.
    for place in range(20):
        assert len({id.binary()[place] for id in ids}) == 256


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_can_be_pickled(protocol: int) -> None:
    ids = [ObjectID.from_random() for _ in range(5)]
    assert pickle.loads(pickle.dumps(ids, protocol)) == ids


def test_it_can_be_copied() -> None:
    id = ObjectID.from_random()
    assert copy.copy(id) == id
    assert copy.deepcopy([id]) == [id]


def test_it_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ObjectID(20 * b"a").name = "a"  # type: ignore[attr-defined]


def test_it_can_be_referred_to_weakly() -> None:
    id = ObjectID.from_random()
    reference = weakref.ref(id)
    assert reference() is id
    del id
    assert reference() is None


class Name(ObjectID):
    """An id of a program of its own, as programs had with the original."""


def test_it_can_be_derived_from(client: plasma.PlasmaClient) -> None:
    name = Name(20 * b"n")
    assert isinstance(name, ObjectID)
    assert name == ObjectID(20 * b"n")
    assert client.put("value", name) is name
    assert client.get(ObjectID(20 * b"n")) == "value"
    assert type(pickle.loads(pickle.dumps(name))) is Name
