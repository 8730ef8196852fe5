"""States on disk: what counts, what is refused, what is removed, and who may write where."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ouroboros.errors import TrainingError
from ouroboros.training.state_store import HASHES, KEY, STATES, STRETCH, StateStore, StoreKey
from ouroboros.training.state_store import make_room as make_room_in
from tests.support.paths import ROOT

Stores = Callable[[StoreKey], StateStore]

PLAIN = StoreKey("teacher", "w" * 8, "d" * 8, 200, 4, 3, "float16", "fp32")


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """Opens stores of one folder, and closes them in the end."""
    with contextlib.ExitStack() as opened:
        yield lambda key: opened.enter_context(StateStore(tmp_path, key))


def states(window: int) -> np.ndarray:
    rng = np.random.default_rng(window)
    return rng.standard_normal((PLAIN.seq_len, PLAIN.hidden)).astype(PLAIN.dtype)


def test_what_was_written_is_read_by_the_next(stores: Stores) -> None:
    store = stores(PLAIN)
    for window in (0, 7, 199):
        assert not store.holds(window)
        store.write(window, states(window))
    store.close()
    again = stores(PLAIN)
    held = [window for window in range(200) if again.holds(window)]
    assert held == [0, 7, 199]
    assert all(np.array_equal(again.read(window), states(window)) for window in held)
    assert again.read(7).dtype == np.float16


@pytest.mark.parametrize("damage", ["bit", "moved", "hash", "cut", "unfinished"])
def test_damaged_states_do_not_count(stores: Stores, damage: str) -> None:
    store = stores(PLAIN)
    for window in (0, 1, 2):
        store.write(window, states(window))
    store.close()
    file = store.folder / STATES
    content, size = bytearray(file.read_bytes()), PLAIN.window_bytes
    match damage:
        case "bit":
            content[size + 5] ^= 1
        case "moved":  # another window's, with its own hash
            content[size : 2 * size] = content[:size]
            hashes = bytearray((store.folder / HASHES).read_bytes())
            hashes[32:64] = hashes[:32]
            (store.folder / HASHES).write_bytes(hashes)
        case "cut":
            del content[size + 3 :]
        case "hash":
            with (store.folder / HASHES).open("r+b") as hashes_file:
                hashes_file.seek(32)
                hashes_file.write(b"\1")
        case "unfinished":  # killed between the states and their hash
            with (store.folder / HASHES).open("r+b") as hashes_file:
                hashes_file.seek(32)
                hashes_file.write(bytes(32))
    file.write_bytes(content)
    again = stores(PLAIN)
    assert [again.holds(window) for window in (0, 1, 2)] == [True, False, damage != "cut"]
    again.write(1, states(1))
    assert again.holds(1)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "prelude"}, {"weights": "x"}, {"data": "x"}, {"windows": 201}, {"seq_len": 8},
        {"hidden": 4}, {"dtype": "float32"}, {"precision": "bf16"},
    ],
)  # fmt: skip
def test_states_of_something_else_are_not_read(stores: Stores, changes: dict[str, object]) -> None:
    """They are elsewhere by their name; put in the place of these, they are refused by name."""
    store = stores(PLAIN)
    store.write(0, states(0))
    other_key = dataclasses.replace(PLAIN, **changes)  # type: ignore[arg-type]
    other = stores(other_key)
    assert not other.holds(0)
    other.close()
    (other.folder / KEY).write_text((store.folder / KEY).read_text())
    (name,) = changes
    with pytest.raises(TrainingError, match=f"something else: {name} is .*, wanted .*; delete it"):
        stores(other_key)
    for damaged in ("{", "[" * 100_000):
        (other.folder / KEY).write_text(damaged)
        with pytest.raises(TrainingError, match=r"key\.json is damaged; delete .*prelude|teacher-"):
            stores(other_key)
    (other.folder / KEY).write_text(json.dumps({"format": 3}))
    with pytest.raises(TrainingError, match="format is 3, wanted 2"):
        stores(other_key)


def test_too_large_a_file_is_refused(stores: Stores) -> None:
    store = stores(PLAIN)
    store.close()
    os.truncate(store.folder / STATES, 10_000)
    with pytest.raises(TrainingError, match=r"has 10,000 bytes and should have 4,800; delete"):
        stores(PLAIN)


def big(number: int) -> StoreKey:
    return dataclasses.replace(PLAIN, weights=str(number), seq_len=1024, hidden=8)


def test_stores_unused_for_longest_make_room(tmp_path: Path, stores: Stores) -> None:
    size = big(0).window_bytes
    folders = []
    for number in range(4):
        store = stores(big(number))
        store.write(0, np.zeros((1024, 8), np.float16))
        store.close()
        os.utime(store.folder / KEY, (number, number))
        folders.append(store.folder)
    (tmp_path / "somebody's").mkdir()
    each = sum((folders[0] / name).stat().st_blocks * 512 for name in (STATES, HASHES))
    assert size <= each < 2 * size
    in_use = stores(big(1))
    os.utime(folders[1] / KEY, (1, 1))
    assert make_room_in(tmp_path, each, 5 * each, set()) == []
    removed = make_room_in(tmp_path, each, 3 * each, {folders[0].name})
    assert removed == [folders[2].name, folders[3].name]
    assert in_use.holds(0)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        ["somebody's", folders[0].name, folders[1].name]
    )
    with pytest.raises(TrainingError, match=r"above state_cache_gb=3.*; give --state-cache-gb"):
        make_room_in(tmp_path, int(3e9), int(3e9), {folders[0].name})
    free = 1 << 60
    with pytest.raises(TrainingError, match=r"the disk has .* GB left; make room"):
        make_room_in(tmp_path, free, 2 * free, set())


CLAIM = f"""
import sys, time
from pathlib import Path
from ouroboros.training.state_store import StateStore, StoreKey
with StateStore(Path(sys.argv[1]), {PLAIN!r}) as store, store.claiming(1) as own:
    print(own, flush=True)
    time.sleep(60)
"""


def test_a_stretch_belongs_to_one_process_while_it_lives(tmp_path: Path, stores: Stores) -> None:
    store = stores(PLAIN)
    assert PLAIN.windows > 2 * STRETCH
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        with store.claiming(1) as own:
            assert not own
        for free in (0, 2):
            with store.claiming(free) as own:
                assert own
        other.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with store.claiming(1) as own:
            if own:
                return
    pytest.fail("a killed process kept its stretch")


def read_below(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("name", ["", KEY, STATES, HASHES])
def test_a_link_in_a_store_leads_nowhere(tmp_path: Path, stores: Stores, name: str) -> None:
    """A folder that several people write to is no way into anybody's files."""
    store = stores(PLAIN)
    store.close()
    target = tmp_path / "elsewhere"
    linked = store.folder / name
    linked.rename(target)
    linked.symlink_to(target)
    before = read_below(target)
    with pytest.raises(TrainingError, match=rf"{linked} is a link, and kept states .*; delete it"):
        stores(PLAIN)
    linked.unlink()
    linked.symlink_to(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="is a link"):
        stores(PLAIN)
    assert not (tmp_path / "nowhere").exists()
    linked.unlink()
    linked.symlink_to(target)
    make_room_in(tmp_path, 0, 0, set())
    assert read_below(target) == before


def test_the_folder_of_all_stores_may_be_a_link(tmp_path: Path) -> None:
    """Whoever names it has chosen it: on a larger disk, for one."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    with StateStore(tmp_path / "cache", PLAIN) as store:
        store.write(0, states(0))
        assert store.holds(0)


@pytest.mark.parametrize("name", [KEY, STATES, HASHES])
def test_a_pipe_in_a_store_is_not_waited_for(tmp_path: Path, stores: Stores, name: str) -> None:
    store = stores(PLAIN)
    store.close()
    (store.folder / name).unlink()
    os.mkfifo(store.folder / name)
    with pytest.raises((TrainingError, OSError)):
        stores(PLAIN)
