"""Every code block of the original's user guide, in its order.

The examples follow the user guide of Apache Arrow (docs/source/python/plasma.rst, Copyright the
Apache Software Foundation, licensed under the Apache License 2.0). They are texts here, so that it
can be seen that only two things differ: the import, and the path of the socket. Once more they run
with the import unchanged, see `plasma.install_as_pyarrow_plasma`.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import children
import numpy as np
import pandas as pd
import probes
import pyarrow as pa
import pytest
from children import Child
from support import wait_until

import plasma
import plasma.client

OLD_IMPORT = "import pyarrow.plasma as plasma"
NEW_IMPORT = "import plasma"
PATH_IN_GUIDE = "/tmp/plasma"

#: The store that the guide starts.
COMMAND = "plasma_store -m 1000000000 -s /tmp/plasma"
HUGE_COMMAND = "plasma_store -s /tmp/plasma -m 10000000000 -d /mnt/hugepages -h"


@contextlib.contextmanager
def started(command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command line of the guide as a shell would, with the commands of this Python first.

    The end is the guide's: "you can press Ctrl-C in the terminal".
    """
    search = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    arguments = shlex.split(command)
    with subprocess.Popen(
        arguments, stderr=subprocess.DEVNULL, env={**os.environ, "PATH": search}
    ) as process:
        path = arguments[arguments.index("-s") + 1]
        try:
            wait_until(lambda: process.poll() is not None or os.path.exists(path))
            assert process.poll() is None, f"{command!r} ended with {process.returncode}"
            yield process
            process.send_signal(signal.SIGINT)
            assert process.wait(children.PATIENCE_SECONDS) == 0
            assert not os.path.exists(path), "the socket goes with the store"
        finally:
            process.kill()


class Session:
    """Somebody at a Python prompt who types in what the guide says."""

    def __init__(self, path: str, import_line: str) -> None:
        self._path = path
        self._import_line = import_line
        self.names: dict[str, Any] = {}

    def run(self, block: str) -> str:
        """A block of the guide: what it prints."""
        block = block.replace(OLD_IMPORT, self._import_line).replace(PATH_IN_GUIDE, self._path)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "<guide>", "exec"), self.names)
        return printed.getvalue()

    def value(self, expression: str) -> Any:
        """What an expression at the prompt gives. (The prompt shows its `repr`.)"""
        return eval(compile(expression, "<guide>", "eval"), self.names)

    def __getitem__(self, name: str) -> Any:
        return self.names[name]


# -- the sections ---------------------------------------------------------------------------------


def creating_a_client(guide: Session) -> None:
    guide.run("""
import pyarrow.plasma as plasma
client = plasma.connect("/tmp/plasma")
""")
    assert guide["client"].store_capacity() == 1_000_000_000


def object_ids(guide: Session) -> None:
    guide.run("""
# Create an ObjectID.
id = plasma.ObjectID(20 * b"a")
""")
    assert repr(guide.value("id")) == "ObjectID(6161616161616161616161616161616161616161)"
    guide.run("""
import numpy as np

def random_object_id():
  return plasma.ObjectID(np.random.bytes(20))
""")
    assert guide.value("random_object_id()") != guide.value("random_object_id()")


def putting_and_getting(guide: Session) -> None:
    guide.run("""
# Create a python object.
object_id = client.put("hello, world")

# Get the object.
client.get(object_id)
""")
    assert guide.value("client.get(object_id)") == "hello, world"
    guide.run("""
# Create multiple python objects.
object_id1 = client.put(1)
object_id2 = client.put(2)
object_id3 = client.put(3)

# Get the objects.
client.get([object_id1, object_id2, object_id3])
""")
    assert guide.value("client.get([object_id1, object_id2, object_id3])") == [1, 2, 3]
    # "If the object is not available within the timeout, the special object …"
    missing = guide.value("client.get(random_object_id(), timeout_ms=10)")
    assert missing is plasma.ObjectNotAvailable


def creating_a_buffer(guide: Session) -> None:
    guide.run("""
# Create an object buffer.
object_id = plasma.ObjectID(20 * b"a")
object_size = 1000
buffer = memoryview(client.create(object_id, object_size))

# Write to the buffer.
for i in range(1000):
  buffer[i] = i % 128
""")
    guide.run("""
# Seal the object. This makes the object immutable and available to other clients.
client.seal(object_id)
""")


def getting_a_buffer(guide: Session) -> None:
    guide.run("""
# Create a different client. Note that this second client could be
# created in the same or in a separate, concurrent Python session.
client2 = plasma.connect("/tmp/plasma")

# Get the object in the second client. This blocks until the object has been sealed.
object_id2 = plasma.ObjectID(20 * b"a")
[buffer2] = client2.get_buffers([object_id])
""")
    assert re.fullmatch(r"<memory at 0x[0-9a-f]+>", repr(guide.value("buffer")))
    assert guide.value("buffer[1]") == 1
    # It shows itself as a buffer of pyarrow's, which it is.
    assert isinstance(guide.value("buffer2"), plasma.PlasmaBuffer)
    guide.run("view2 = memoryview(buffer2)")
    assert guide.value("view2[1]") == 1
    assert guide.value("view2[129]") == 1
    assert guide.value("bytes(buffer[1:4])") == b"\x01\x02\x03"
    assert guide.value("bytes(view2[1:4])") == b"\x01\x02\x03"
    # "After the timeout, the interpreter will yield control back."
    assert guide.value("client2.get_buffers([random_object_id()], timeout_ms=10)") == [None]


def listing(guide: Session) -> None:
    before = set(guide.value("client.list()"))
    printed = guide.run("""
import pyarrow.plasma as plasma
import time

client = plasma.connect("/tmp/plasma")

client.put("hello, world")
# Sleep a little so we get different creation times
time.sleep(2)
client.put("another object")
# Create an object that is not sealed yet
object_id = plasma.ObjectID.from_random()
client.create(object_id, 100)
print(client.list())
""")
    listed = guide.value("client.list()")
    assert printed == f"{listed}\n"
    assert re.match(r"{ObjectID\([0-9a-f]{40}\): {'", printed)
    new = {object_id: entry for object_id, entry in listed.items() if object_id not in before}
    unsealed = new.pop(guide["object_id"])
    hello, another = sorted(new.values(), key=lambda entry: entry["create_time"])

    keys = {
        "construct_duration",
        "create_time",
        "data_size",
        "metadata_size",
        "ref_count",
        "state",
    }
    for entry in (hello, another, unsealed):
        assert keys <= entry.keys()
        assert entry["metadata_size"] == 0
        assert abs(entry["create_time"] - time.time()) < 1000
    for entry in (hello, another):
        shown = entry["construct_duration"], entry["ref_count"], entry["state"]
        assert shown == (0, 0, "sealed")
        assert entry["data_size"] > len("hello, world")
    assert another["create_time"] >= hello["create_time"] + 1, "these are whole seconds"
    shown = unsealed["construct_duration"], unsealed["ref_count"], unsealed["state"]
    assert shown == (-1, 1, "created")
    assert unsealed["data_size"] == 100


def storing_arrow_objects(guide: Session) -> None:
    guide.run("""
import numpy as np
import pyarrow as pa

# Create a pyarrow.Tensor object from a numpy random 2-dimensional array
data = np.random.randn(10, 4)
tensor = pa.Tensor.from_numpy(data)

# Create the object in Plasma
object_id = plasma.ObjectID(np.random.bytes(20))
data_size = pa.ipc.get_tensor_size(tensor)
buf = client.create(object_id, data_size)
""")
    guide.run("""
# Write the tensor into the Plasma-allocated buffer
stream = pa.FixedSizeBufferWriter(buf)
pa.ipc.write_tensor(tensor, stream)  # Writes tensor's 552 bytes to Plasma stream
""")
    assert guide.value("stream.tell()") == guide.value("data_size")
    guide.run("""
# Seal the Plasma object
client.seal(object_id)
""")


def getting_arrow_objects(guide: Session) -> None:
    guide.run("""
# Get the arrow object by ObjectID.
[buf2] = client.get_buffers([object_id])
""")
    guide.run("""
# Reconstruct the Arrow tensor object.
reader = pa.BufferReader(buf2)
tensor2 = pa.ipc.read_tensor(reader)
""")
    guide.run("""
# Convert back to numpy
array = tensor2.to_numpy()
""")
    assert guide["tensor2"].equals(guide["tensor"])
    np.testing.assert_array_equal(guide["array"], guide["data"])


def storing_data_frames(guide: Session) -> None:
    # With pandas 3 the last line fails, store or no store: pandas keeps text in Arrow's chunks,
    # which a record batch cannot have. Unless it is told to keep Python's strings.
    with pd.option_context("mode.string_storage", "python"):
        guide.run("""
import pyarrow as pa
import pandas as pd

# Create a Pandas DataFrame
d = {'one' : pd.Series([1., 2., 3.], index=['a', 'b', 'c']),
     'two' : pd.Series([1., 2., 3., 4.], index=['a', 'b', 'c', 'd'])}
df = pd.DataFrame(d)

# Convert the Pandas DataFrame into a PyArrow RecordBatch
record_batch = pa.RecordBatch.from_pandas(df)
""")
    guide.run("""
# Create the Plasma object from the PyArrow RecordBatch. Most of the work here
# is done to determine the size of buffer to request from the object store.
object_id = plasma.ObjectID(np.random.bytes(20))
mock_sink = pa.MockOutputStream()
with pa.RecordBatchStreamWriter(mock_sink, record_batch.schema) as stream_writer:
    stream_writer.write_batch(record_batch)
data_size = mock_sink.size()
buf = client.create(object_id, data_size)
""")
    guide.run("""
# Write the PyArrow RecordBatch to Plasma
stream = pa.FixedSizeBufferWriter(buf)
with pa.RecordBatchStreamWriter(stream, record_batch.schema) as stream_writer:
    stream_writer.write_batch(record_batch)
""")
    guide.run("""
# Seal the Plasma object
client.seal(object_id)
""")


def getting_data_frames(guide: Session) -> None:
    stored = guide["record_batch"]
    guide.run("""
# Fetch the Plasma object
[data] = client.get_buffers([object_id])  # Get PlasmaBuffer from ObjectID
buffer = pa.BufferReader(data)
""")
    guide.run("""
# Convert object back into an Arrow RecordBatch
reader = pa.RecordBatchStreamReader(buffer)
record_batch = reader.read_next_batch()
""")
    guide.run("""
# Convert back into Pandas
result = record_batch.to_pandas()
""")
    assert guide["record_batch"].equals(stored)
    # Names come back as the pandas of today keeps text.
    pd.testing.assert_frame_equal(
        guide["result"], guide["df"], check_index_type=False, check_column_type=False
    )


SECTIONS = [
    creating_a_client,
    object_ids,
    putting_and_getting,
    creating_a_buffer,
    getting_a_buffer,
    listing,
    storing_arrow_objects,
    getting_arrow_objects,
    storing_data_frames,
    getting_data_frames,
]


def follow_the_guide(directory: str, import_line: str) -> None:
    path = f"{directory}/plasma"
    with started(COMMAND.replace(PATH_IN_GUIDE, path)):
        guide = Session(path, import_line)
        for section in SECTIONS:
            section(guide)
        guide["client"].disconnect()
        guide["client2"].disconnect()


# -- the tests ------------------------------------------------------------------------------------


def test_the_guide(tmp_path: Path) -> None:
    follow_the_guide(str(tmp_path), NEW_IMPORT)


def unchanged(directory: str) -> None:
    plasma.install_as_pyarrow_plasma()
    follow_the_guide(directory, OLD_IMPORT)


def test_the_guide_with_its_import_unchanged(tmp_path: Path) -> None:
    # In a process of its own, because it changes pyarrow for all that follows.
    with Child(unchanged, str(tmp_path)) as child:
        child.succeeds()


def test_connecting_when_there_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The guide's call would try for eight seconds.
    monkeypatch.setattr(plasma.client, "RETRIES_DEFAULT", 2)
    path = str(tmp_path / "plasma")
    guide = Session(path, NEW_IMPORT)
    guide.run(OLD_IMPORT)
    with pytest.raises(OSError, match=re.escape(path)):
        guide.run('client = plasma.connect("/tmp/plasma")')


# -- huge pages -----------------------------------------------------------------------------------

SCRIPT = Path(__file__).parents[2] / "scripts" / "hugepages-setup.sh"
STATE = Path("/run/plasma-hugepages.state")
PAGES = Path("/proc/sys/vm/nr_hugepages")

#: Numbers in the array (the guide's, and one for machines with less memory), and huge pages for it.
SIZES = [(100_000_000, "1G"), (10_000_000, "160M")]


def left_out(why: str) -> Any:
    pytest.skip(f"LEFT OUT: the guide's huge pages: {why.strip()}")


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("SUDO_UID", "SUDO_GID")}
    return subprocess.run(
        [str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def huge_pages(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A file system of huge pages, and how many numbers there is room for. The script makes it, and
    puts the machine back as it was."""
    if not SCRIPT.exists():
        left_out("the script that sets them up is part of the checkout only")
    if os.geteuid() != 0:
        left_out("only root can set them up")
    # They belong to the machine, so the store's own test of them has to wait, and we for it.
    with open(Path(tempfile.gettempdir(), "plasma-test-hugepages.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not PAGES.exists():
            left_out("this kernel has none")
        if STATE.exists():
            left_out("somebody has set up huge pages on this machine already")
        before = PAGES.read_text()
        mount = str(tmp_path / "huge")
        try:
            yield mount, _set_up(mount)
        finally:
            if STATE.exists():
                undone = script("--undo")
                assert undone.returncode == 0, undone
            assert PAGES.read_text() == before
            assert mount not in Path("/proc/mounts").read_text()


def _set_up(mount: str) -> int:
    failed = None
    for count, size in SIZES:
        # The array itself needs as much again, and the others on this machine something too.
        if probes.available_bytes() < 4 * 8 * count:
            continue
        done = script("--size", size, "--mount", mount)
        if done.returncode == 0:
            return count
        failed = done.stderr
        if STATE.exists():
            script("--undo")
    count = left_out(failed or "there is too little memory")
    assert isinstance(count, int)
    return count


def test_huge_pages(tmp_path: Path, huge_pages: tuple[str, int]) -> None:
    mount, count = huge_pages
    path = str(tmp_path / "plasma")
    command = HUGE_COMMAND.replace(PATH_IN_GUIDE, path).replace("/mnt/hugepages", mount)
    with started(command.replace("10000000000", str(9 * count))):
        guide = Session(path, NEW_IMPORT)
        program = """
import numpy as np
import pyarrow as pa
import pyarrow.plasma as plasma
import time

client = plasma.connect("/tmp/plasma")

data = np.random.randn(100000000)
tensor = pa.Tensor.from_numpy(data)

object_id = plasma.ObjectID(np.random.bytes(20))
buf = client.create(object_id, pa.ipc.get_tensor_size(tensor))

stream = pa.FixedSizeBufferWriter(buf)
stream.set_memcopy_threads(4)
a = time.time()
pa.ipc.write_tensor(tensor, stream)
print("Writing took ", time.time() - a)
"""
        printed = guide.run(program.replace("100000000", str(count)))
        assert re.fullmatch(r"Writing took  \d+\.\d+(e-\d+)?\n", printed)
        assert probes.status_bytes("HugetlbPages") >= 8 * count, "it lies in huge pages"
        written = pa.ipc.read_tensor(pa.BufferReader(guide["buf"])).to_numpy()
        assert np.array_equal(written, guide["data"])
        guide["client"].disconnect()
        # A mapping that is in use would keep the file system from being unmounted.
        del written
        guide.names.clear()
