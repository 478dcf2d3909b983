"""The build of the package: maturin, and before it the store program.

A wheel has to bring two results of one Cargo workspace: the extension module, which maturin builds,
and the program `plasma_store`, which it does not. So every hook of PEP 517 and PEP 660 is
maturin's; those that make a wheel first build the program and put it where `[tool.maturin] include`
finds it.
Both use the same target directory and the same profile, so what they share is compiled once.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

# A compiler that appears from nowhere surprises; who has none is told.
os.environ["MATURIN_NO_INSTALL_RUST"] = "1"

import maturin  # noqa: E402
from maturin import (  # noqa: E402, F401
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

_PYTHON = Path(__file__).resolve().parent.parent
# In a checkout the extension module's, in a source distribution the store's: of one workspace both.
_MANIFEST = _PYTHON / "Cargo.toml"
_PROGRAM = _PYTHON / "plasma" / "bin" / "plasma-store-server"

_Settings = dict[str, Any] | None


def get_requires_for_build_wheel(config_settings: _Settings = None) -> list[str]:
    _cargo()
    return list(maturin.get_requires_for_build_wheel(config_settings))


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(
    wheel_directory: str, config_settings: _Settings = None, metadata_directory: str | None = None
) -> str:
    is_run_by_editable_installation = _PROGRAM.exists()
    _build_program()
    try:
        return str(maturin.build_wheel(wheel_directory, config_settings, metadata_directory))
    finally:
        if not is_run_by_editable_installation:
            _PROGRAM.unlink()


def build_editable(
    wheel_directory: str, config_settings: _Settings = None, metadata_directory: str | None = None
) -> str:
    _build_program()
    return str(maturin.build_editable(wheel_directory, config_settings, metadata_directory))


def _build_program() -> None:
    command = [_cargo(), "rustc", "--release", "--package=plasma-store", "--bin=plasma_store"]
    command += ["--message-format=json-render-diagnostics", f"--manifest-path={_MANIFEST}"]
    # As a flag of the last step and not of the profile, so that libraries are shared with others.
    command += ["--", "-Cstrip=symbols"]
    print("building the store program:", " ".join(command), file=sys.stderr, flush=True)
    built = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if built.returncode != 0:
        sys.exit(f"plasma-store: building the store program failed, see above: {command}")
    messages = map(json.loads, built.stdout.splitlines())
    (program,) = (message["executable"] for message in messages if message.get("executable"))
    _PROGRAM.parent.mkdir(exist_ok=True)
    # Not onto the old one, which may be running, but in its place.
    fresh = _PROGRAM.with_suffix(".new")
    shutil.copy(program, fresh)
    os.replace(fresh, _PROGRAM)


def _cargo() -> str:
    cargo = shutil.which("cargo")
    if cargo is None:
        sys.exit(
            "plasma-store: cargo was not found. Building this package needs Rust "
            "(https://rustup.rs); using it does not, so a wheel that was built elsewhere will do."
        )
    return cargo
