"""Runs a program that was written for `pyarrow.plasma`, without changing it.

    python -m plasma.compat PROGRAM [ARGUMENTS...]
    python -m plasma.compat -m MODULE [ARGUMENTS...]

The program finds this package where pyarrow used to have Plasma (see `install_as_pyarrow_plasma`)
and is run as Python would run it: `sys.argv`, `sys.path`, `__name__`, exit codes and tracebacks are
those of `python PROGRAM` and `python -m MODULE`. Of a module or folder, but not of a file, the
module `__main__` is gone when the last line has run and only threads go on.
"""

import builtins
import importlib.util
import os
import pkgutil
import runpy
import sys
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from types import CodeType, ModuleType, TracebackType

from plasma._alias import install_as_pyarrow_plasma

__all__ = ["install_as_pyarrow_plasma", "main"]

_USAGE = """\
Usage: python -m plasma.compat PROGRAM [ARGUMENTS...]
       python -m plasma.compat -m MODULE [ARGUMENTS...]

Runs a Python program that was written for pyarrow.plasma with this package in
its place. The program and pyarrow are not changed.
"""

_WRONG_USAGE = 2
# What `python -m` answers for a module that it cannot find.
_NO_MODULE = 1


def main(arguments: list[str]) -> int:
    """Runs what the command line names. Returns 0, or an exit code if nothing could be run.

    The program's own `SystemExit` and exceptions pass through.
    """
    match arguments:
        case ["-h" | "--help", *_]:
            print(_USAGE, end="")
            return 0
        case ["-m", module, *rest]:
            return _run_module(module, rest)
        case ["-m"]:
            return _fail("-m needs the name of a module", _WRONG_USAGE)
        case [program, *rest] if not program.startswith("-"):
            return _run_program(program, rest)
        case [option, *_]:
            return _fail(f"unknown option {option}", _WRONG_USAGE)
        case _:
            return _fail("which program?", _WRONG_USAGE)


def _run_program(program: str, arguments: list[str]) -> int:
    if not os.path.exists(program):
        return _fail(f"there is no file {program!r}", _WRONG_USAGE)
    install_as_pyarrow_plasma()
    # Or a zip file: something with a `__main__.py` inside, which runpy puts on the path.
    is_folder = pkgutil.get_importer(program) is not None
    if not _is_path_safe():
        # Python put the working directory there, as for every -m.
        del sys.path[0]
        if not is_folder:
            sys.path.insert(0, os.path.dirname(os.path.realpath(program)))
    sys.argv[:] = [program, *arguments]
    _hide_own_frames()
    if is_folder:
        runpy.run_path(program, run_name="__main__")
    else:
        _run_file(os.path.abspath(program))
    return 0


def _run_file(path: str) -> None:
    """As `runpy.run_path` does, but as Python does it: `__main__` stays the program's until the
    process ends, and `sys.argv[0]` is what was typed."""
    loader: SourceFileLoader | SourcelessFileLoader
    code: CodeType | None
    if path.endswith(".pyc"):
        loader = SourcelessFileLoader("__main__", path)
        code = loader.get_code("__main__")
        assert code is not None, "a compiled file has code, or get_code raises"
    else:
        loader = SourceFileLoader("__main__", path)
        code = loader.source_to_code(loader.get_data(path), path)
    module = ModuleType("__main__")
    module.__dict__.update(__file__=path, __loader__=loader, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


def _run_module(module: str, arguments: list[str]) -> int:
    install_as_pyarrow_plasma()
    if not _can_be_found(module):
        return _fail(f"No module named {module}", _NO_MODULE)
    sys.argv[:] = [module, *arguments]
    _hide_own_frames()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _is_path_safe() -> bool:
    """Was Python told not to search the working directory or the program's?"""
    return bool(sys.flags.isolated or getattr(sys.flags, "safe_path", False))


def _can_be_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        # A package on the way to it. What such a package itself misses is an error to be shown.
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            return False
        raise


def _hide_own_frames() -> None:
    """Has a traceback begin with the program, as it would without this module."""
    show = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, frames: TracebackType | None
    ) -> None:
        mine = {__file__, runpy.__file__, "<frozen runpy>"}
        while frames is not None and frames.tb_frame.f_code.co_filename in mine:
            frames = frames.tb_next
        show(kind, error.with_traceback(frames), frames)

    sys.excepthook = excepthook


def _fail(text: str, code: int) -> int:
    print(f"plasma.compat: {text}", file=sys.stderr)
    if code == _WRONG_USAGE:
        print(_USAGE, end="", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
