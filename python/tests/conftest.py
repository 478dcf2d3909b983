"""Real stores for the tests: started for one test, gone with it."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support import HAS_DIRECTORY, wait_until

import plasma
from plasma.server import plasma_store_executable, start_plasma_store

__all__ = ["wait_until"]

STORE_BYTES = 100_000_000


@pytest.fixture(autouse=True, scope="session")
def stores_without_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """With `PLASMA_TEST_NO_DIRECTORY=1` in the environment clients ask for every object."""
    if HAS_DIRECTORY:
        yield
        return
    store = tmp_path_factory.mktemp("store") / "plasma_store"
    program = shlex.quote(plasma_store_executable())
    store.write_text(f'#!/bin/sh\nexec {program} "$@" --no-directory\n')
    store.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plasma.server.plasma_store_executable", lambda: str(store))
        yield


@pytest.fixture
def make_store() -> Iterator[Callable[..., str]]:
    """`make_store(memory=…, **options of start_plasma_store)` gives the socket of a new store."""
    with ExitStack() as stores:

        def make(memory: int | str = STORE_BYTES, **options: Any) -> str:
            path, _ = stores.enter_context(start_plasma_store(memory, **options))
            return path

        yield make


@pytest.fixture
def store(make_store: Callable[..., str]) -> str:
    """The socket of a store of 100 MB."""
    return make_store()


@pytest.fixture
def client(store: str) -> Iterator["plasma.PlasmaClient"]:
    """A client of `store`; the test may disconnect it."""
    client = plasma.connect(store)
    yield client
    client.disconnect()
