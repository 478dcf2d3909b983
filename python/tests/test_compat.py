"""`pyarrow.plasma` means this package: in a process that asks for it, in its children, and in an
old program that knows nothing of it. Each in a process of its own, for it cannot be undone."""

import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

import plasma
from plasma.server import start_plasma_store

# `pickle.dumps(ObjectID(b"a" * 20), 2)`, as pyarrow 11 wrote it.
OLD_PICKLE = (
    b"\x80\x02cpyarrow._plasma\nmake_object_id\nq\x00c_codecs\nencode\nq\x01X\x14\x00\x00\x00"
    b"aaaaaaaaaaaaaaaaaaaaq\x02X\x06\x00\x00\x00latin1q\x03\x86q\x04Rq\x05\x85q\x06Rq\x07."
)

# As people wrote it, with the import at the top.
OLD_PROGRAM = """
import sys
import multiprocessing
import numpy as np
import pyarrow as pa
import pyarrow.plasma as plasma

def read(path, id):
    client = plasma.connect(path)
    return int(client.get(plasma.ObjectID(id)).sum())

if __name__ == "__main__":
    path, method = sys.argv[1:]
    client = plasma.connect(path, "", 0)
    id = client.put(np.arange(100))
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.apply(read, (path, id.binary())) == 4950
    print("sum 4950 by", method)
"""


def run(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def run_code(code: str) -> str:
    ran = run("-c", code)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def run_compat(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return run("-m", "plasma.compat", *arguments, cwd=cwd)


def same_as_python(cwd: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs it with Python and with `plasma.compat`, which agree in all that the program sees."""
    plain, compat = run(*arguments, cwd=cwd), run_compat(*arguments, cwd=cwd)
    assert compat.returncode == plain.returncode, compat.stderr
    assert compat.stdout == plain.stdout
    assert compat.stderr == without_runpy(plain.stderr)
    return compat


def without_runpy(traceback: str) -> str:
    """`python -m` shows frames of runpy before the program's own, `plasma.compat` does not."""
    kept, skipping = [], False
    for line in traceback.splitlines(keepends=True):
        skipping = (
            "runpy" in line if line.startswith("  File ") else skipping and line[:4] == "    "
        )
        if not skipping:
            kept.append(line)
    return "".join(kept)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a program that shows how it is run, and ends as it is told."""
    source = """
import os, sys
def main():
    print(sys.argv, __name__, sys.path[0], __file__, __package__)
    match sys.argv[1:]:
        case ["raise"]: raise ValueError("mine")
        case ["raise from"]:
            try:
                raise ValueError("first")
            except ValueError as error:
                raise LookupError("second") from error
        case ["text"]: sys.exit("some text")
        case [code]: sys.exit(int(code))
if __name__ == "__main__":
    main()
"""
    (tmp_path / "package").mkdir()
    for name in ("program.py", "package/__init__.py", "package/__main__.py", "package/inner.py"):
        (tmp_path / name).write_text("" if name.endswith("__init__.py") else source)
    (tmp_path / "broken.py").write_text("import does_not_exist\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "package" / "broken.py").write_text("import does_not_exist\n")
    return tmp_path


def test_every_way_to_name_it_means_this_package() -> None:
    run_code("""
import plasma
plasma.install_as_pyarrow_plasma()
plasma.install_as_pyarrow_plasma()
import pyarrow.plasma as one
from pyarrow import plasma as two
import pyarrow as pa
import pyarrow._plasma
from pyarrow.plasma import ObjectID, connect, start_plasma_store
from pyarrow._plasma import PlasmaClient, PlasmaObjectExists
assert one is two is pa.plasma is plasma
assert pyarrow._plasma.ObjectID is ObjectID is plasma.ObjectID
assert PlasmaClient is plasma.PlasmaClient
assert pyarrow._plasma.PLASMA_WAIT_TIMEOUT == 2**30
import multiprocessing.spawn
data = multiprocessing.spawn.get_preparation_data("x")
assert len([key for key in data if "plasma" in key]) == 1
""")


def test_pickles_of_old_programs_load() -> None:
    run_code(f"""
import pickle, plasma
try:
    pickle.loads({OLD_PICKLE!r})
except ModuleNotFoundError as error:
    assert "pyarrow._plasma" in str(error)
else:
    raise AssertionError("this pyarrow has a plasma of its own")
plasma.install_as_pyarrow_plasma()
assert pickle.loads({OLD_PICKLE!r}) == plasma.ObjectID(b"a" * 20)
missing = pickle.loads(b"cpyarrow._plasma\\nObjectNotAvailable\\n.")
assert missing is plasma.ObjectNotAvailable
""")


def test_serialization_comes_back_to_pyarrow() -> None:
    run_code("""
import plasma
plasma.install_as_pyarrow_plasma()
import numpy as np
import pyarrow as pa

class Own:
    def __init__(self, number):
        self.number = number

context = pa.default_serialization_context()
assert isinstance(context, pa.SerializationContext)
context.register_type(
    Own, "own", custom_serializer=lambda own: own.number, custom_deserializer=Own
)
value = {"array": np.arange(100_000), "own": Own(7)}
serialized = pa.serialize(value, context=context)
assert isinstance(serialized, pa.SerializedPyObject)
buffer = serialized.to_buffer()
assert isinstance(buffer, pa.Buffer) and buffer.size == serialized.total_bytes

again = pa.deserialize(buffer, context)
assert again["own"].number == 7
assert (again["array"] == value["array"]).all()
start = again["array"].ctypes.data
assert buffer.address <= start < buffer.address + buffer.size, "not copied"

target = pa.allocate_buffer(serialized.total_bytes)
pa.serialize_to(value, pa.FixedSizeBufferWriter(target), context)
assert target.equals(buffer)
sink = pa.BufferOutputStream()
serialized.write_to(sink)
assert sink.getvalue().equals(buffer)
assert serialized.deserialize()["own"].number == 7
try:
    pa.deserialize(pa.py_buffer(b"something else"))
except plasma.serialization.InvalidObjectError:
    pass
else:
    raise AssertionError("foreign bytes were read")
""")


def test_a_pyarrow_with_its_own_plasma_is_refused(tmp_path: Path) -> None:
    code = """
import importlib.machinery, importlib.util, plasma
find = importlib.util.find_spec
def with_plasma(name, package=None):
    if name == "pyarrow._plasma":
        return importlib.machinery.ModuleSpec(name, None)
    return find(name, package)
importlib.util.find_spec = with_plasma
try:
    plasma.install_as_pyarrow_plasma()
except RuntimeError as error:
    print(error)
"""
    assert "has its own pyarrow.plasma" in run_code(code)


@pytest.mark.parametrize("name", ["build_plasma_tensorflow_op", "load_plasma_tensorflow_op"])
def test_the_tensorflow_operator_is_an_error_that_says_what_to_do(name: str) -> None:
    with pytest.raises(NotImplementedError, match="client.get"):
        getattr(plasma, name)()
    assert plasma.tf_plasma_op is None
    assert isinstance(plasma.TF_PLASMA_OP_PATH, str)
    assert not os.path.exists(plasma.TF_PLASMA_OP_PATH)


@pytest.mark.parametrize("end", [[], ["0"], ["7"], ["text"], ["raise"], ["raise from"], ["a", "b"]])
@pytest.mark.parametrize(
    "program", [["program.py"], ["-m", "program"], ["-m", "package"], ["-m", "package.inner"]]
)
def test_a_program_runs_as_python_runs_it(folder: Path, program: list[str], end: list[str]) -> None:
    ran = same_as_python(folder, *program, *end)
    assert "__main__" in ran.stdout


def test_a_program_elsewhere_finds_its_neighbours(folder: Path, tmp_path: Path) -> None:
    (folder / "package" / "user.py").write_text("import inner, sys; print(inner, sys.path[0])\n")
    ran = same_as_python(folder, "package/user.py")
    assert "inner.py" in ran.stdout
    (folder / "link.py").symlink_to(folder / "package" / "user.py")
    same_as_python(folder, "link.py")


@pytest.mark.parametrize("program", [["broken.py"], ["-m", "broken"], ["-m", "package.broken"]])
def test_what_a_program_misses_is_told_as_by_python(folder: Path, program: list[str]) -> None:
    ran = same_as_python(folder, *program)
    assert "does_not_exist" in ran.stderr
    assert "compat" not in ran.stderr


def test_a_syntax_error_is_told(folder: Path) -> None:
    ran = run_compat("syntax.py", cwd=folder)
    assert ran.returncode == 1
    assert "SyntaxError" in ran.stderr and 'syntax.py", line 1' in ran.stderr


def test_a_compiled_file_is_a_program(folder: Path) -> None:
    compiled = py_compile.compile(str(folder / "program.py"), cfile=str(folder / "compiled.pyc"))
    assert compiled is not None
    (folder / "program.py").unlink()
    same_as_python(folder, "compiled.pyc", "6")


def test_threads_that_outlive_the_last_line_find_their_main_module(folder: Path) -> None:
    (folder / "threads.py").write_text("""
import pickle, threading
class Own: pass
def late():
    threading.main_thread().join()
    print(type(pickle.loads(pickle.dumps(Own()))).__name__)
threading.Thread(target=late).start()
""")
    assert same_as_python(folder, "threads.py").stdout == "Own\n"


def test_a_folder_is_a_program(folder: Path) -> None:
    ran = run_compat("package", "5", cwd=folder)
    assert ran.returncode == 5, ran.stderr
    assert "['package', '5'] __main__ package" in ran.stdout


@pytest.mark.parametrize("arguments", [[], ["-m"], ["--unknown", "program.py"], ["missing.py"]])
def test_wrong_usage_is_2(folder: Path, arguments: list[str]) -> None:
    ran = run_compat(*arguments, cwd=folder)
    assert ran.returncode == 2
    assert "Usage: python -m plasma.compat" in ran.stderr
    assert ran.stdout == ""


@pytest.mark.parametrize("module", ["missing", "missing.inner", "package.missing"])
def test_a_module_that_is_not_there(folder: Path, module: str) -> None:
    ran = run_compat("-m", module, cwd=folder)
    assert ran.returncode == run("-m", module, cwd=folder).returncode == 1
    assert ran.stderr == f"plasma.compat: No module named {module}\n"


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_is_printed(option: str) -> None:
    ran = run_compat(option)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("Usage: python -m plasma.compat PROGRAM")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("program", [["old.py"], ["-m", "old"]])
def test_an_old_program_and_its_children_share_an_array(
    tmp_path: Path, program: list[str], method: str
) -> None:
    (tmp_path / "old.py").write_text(OLD_PROGRAM)
    assert "No module named 'pyarrow.plasma'" in run("old.py", cwd=tmp_path).stderr
    with start_plasma_store(10_000_000) as (path, _):
        ran = run_compat(*program, path, method, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"sum 4950 by {method}\n"
