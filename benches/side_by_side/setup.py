"""Builds ours and fetches the peers, all inside the checkout. A peer that is not to be had is left
out, with the reason; without ours there is nothing to measure.

Environments of Python are in `.venvs/`: `bench` with our package, Redis's client and what draws the
plot; `original` with pyarrow 11; `ray`. The original's C++ program is in `target/side_by_side/`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from contenders import Programs
from works import CPP, PYTHON, RAY, REDIS

ROOT = Path(__file__).resolve().parents[2]
_VENVS = ROOT / ".venvs"
_HERE = Path(__file__).parent

#: The original's last version, and what it ran with. Ours gets the same, so that only the store
#: differs.
_COMMON = ["numpy<2", "pandas==2.0.3"]
_ORIGINAL = ["pyarrow==11.0.0", *_COMMON]
_OURS = [*_COMMON, "pyarrow>=14,<20", "matplotlib", "redis", "hiredis"]
_RAY = ["ray", *_COMMON]

#: Pythons that both our package and the wheels of pyarrow 11 know.
_PYTHONS = ("python3.11", "python3.10")

#: Seconds that a peer may take to be installed.
_INSTALL_TIMEOUT = 600


def say(text: str) -> None:
    """For the person who waits."""
    print(text, file=sys.stderr, flush=True)


def set_up(only_ours: bool) -> Programs:
    """Builds and fetches. With `only_ours` in the debug profile, and without the network."""
    programs = Programs()
    profile = [] if only_ours else ["--release"]
    say("== building the store and its measuring program")
    packages = ["--package=plasma-store", "--package=plasma-side-by-side", "--bins"]
    _run(["cargo", "build", "--quiet", *packages, *profile])
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    built = target / ("debug" if only_ours else "release")
    programs.store = built / "plasma_store"
    programs.measure_ours = built / "plasma-side-by-side"
    if only_ours:
        programs.ours_python = _installed(ROOT / ".venv", "plasma")
        return programs
    python = next((found for name in _PYTHONS if (found := shutil.which(name))), None)
    _try(programs, "ours in Python", lambda: _set_up_ours(programs, python))
    _try(programs, PYTHON, lambda: _set_up_original(programs, python))
    _try(programs, CPP, lambda: _set_up_cpp(programs, target))
    _try(programs, REDIS, lambda: _set_up_redis(programs))
    _try(programs, RAY, lambda: _set_up_ray(programs, python))
    return programs


def _try(programs: Programs, name: str, step: Callable[[], None]) -> None:
    try:
        step()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        programs.missing[name] = str(error)
        say(f"== {name} is left out: {error}")


def _set_up_ours(programs: Programs, python: str | None) -> None:
    folder = _environment("bench", python or sys.executable, _OURS)
    sources = [ROOT / "Cargo.toml", ROOT / "Cargo.lock"]
    for place in ("src", "proto", "python/src", "python/plasma", "python/build_backend"):
        sources += [
            file for file in (ROOT / place).rglob("*") if file.suffix not in (".pyc", ".so")
        ]
    stamp = folder / "ours.stamp"
    digest = _digest(sources)
    if not stamp.exists() or stamp.read_text() != digest:
        say("== installing our Python package into .venvs/bench")
        _pip(folder, ["--force-reinstall", "--no-deps", str(ROOT / "python")])
        stamp.write_text(digest)
    programs.ours_python = folder / "bin/python"


def _set_up_original(programs: Programs, python: str | None) -> None:
    if not python:
        raise RuntimeError(f"pyarrow 11 needs one of {', '.join(_PYTHONS)}, which are not here")
    folder = _environment("original", python, _ORIGINAL)
    programs.original_python = folder / "bin/python"
    programs.original_store = _pyarrow(programs) / "plasma-store-server"


def _set_up_cpp(programs: Programs, target: Path) -> None:
    if not programs.original_python:
        raise RuntimeError("it comes with the original Python client, which is left out")
    if not (compiler := shutil.which("g++") or shutil.which("c++")):
        raise RuntimeError("there is no C++ compiler")
    pyarrow = _pyarrow(programs)
    folder = target / "side_by_side"
    folder.mkdir(parents=True, exist_ok=True)
    source, program = _HERE / "original/measure.cpp", folder / "measure"
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        programs.measure_original = program
        return
    say("== compiling the original's measuring program")
    for library in ("plasma", "arrow"):
        # The linker wants names without versions.
        link = folder / f"lib{library}.so"
        link.unlink(missing_ok=True)
        link.symlink_to(pyarrow / f"lib{library}.so.1100")
    # The wheel was built with the strings of GCC 4.
    flags = ["-O2", "-std=c++17", "-D_GLIBCXX_USE_CXX11_ABI=0", "-Wno-cpp", "-pthread"]
    places = [f"-I{pyarrow / 'include'}", f"-L{folder}", f"-Wl,-rpath,{pyarrow}"]
    _run([compiler, *flags, *places, str(source), "-o", str(program), "-lplasma", "-larrow"])
    programs.measure_original = program


def _set_up_redis(programs: Programs) -> None:
    server = shutil.which("redis-server")
    if not server and os.geteuid() == 0 and shutil.which("apt-get"):
        say("== installing redis-server with apt-get (for all of the machine)")
        _run(["apt-get", "update", "-qq"])
        _run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", "redis-server"])
        server = shutil.which("redis-server")
    if not server:
        raise RuntimeError("there is no redis-server; install it to have it measured")
    programs.redis_server = Path(server)


def _set_up_ray(programs: Programs, python: str | None) -> None:
    programs.ray_python = _environment("ray", python or sys.executable, _RAY) / "bin/python"


def _environment(name: str, python: str, packages: list[str]) -> Path:
    """A virtual environment with these packages. Made anew if it was made for others."""
    folder = _VENVS / name
    stamp, wanted = folder / "bench.stamp", "\n".join([python, *packages])
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    say(f"== installing {' '.join(packages)} into .venvs/{name}")
    _run([python, "-m", "venv", "--clear", str(folder)])
    _pip(folder, packages)
    stamp.write_text(wanted)
    return folder


def _pip(folder: Path, arguments: list[str]) -> None:
    _run([str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *arguments])


def _pyarrow(programs: Programs) -> Path:
    command = [str(programs.original_python), "-c", "import pyarrow; print(pyarrow.__path__[0])"]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def _installed(folder: Path, package: str) -> Path | None:
    """The interpreter of an environment, if it has this package."""
    python = folder / "bin/python"
    if not python.exists():
        return None
    found = subprocess.run([str(python), "-c", f"import {package}"], check=False, cwd="/")
    return python if found.returncode == 0 else None


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(str(file).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _run(command: list[str]) -> None:
    # Someone else's environment would lead pip astray; stdout is for the table.
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "PYTHONPATH")}
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=kept, timeout=_INSTALL_TIMEOUT, stdout=sys.stderr
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:5])} … has failed, see above")
