#!/usr/bin/env bash
# The Python package as its users get it: built and installed into a virtual environment inside the
# checkout, type-checked, and tested against real stores. Needs Rust and a Python from 3.10 on.
#
# Usage: scripts/test-python.sh [PYTHON [ENVIRONMENT]]     default: python3 .venv
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

python=${1:-python3}
environment=${2:-.venv}

version_of() { "$1" -c 'import sys; print(*sys.version_info[:3], sep=".")' 2>/dev/null; }

if ! version=$(version_of "$python"); then
    echo "${0##*/}: $python does not run; name another Python" >&2
    exit 1
fi

step "Python $version in $environment"
if [[ $(version_of "$environment/bin/python") != "$version" ]]; then
    "$python" -m venv --clear "$environment"
fi
# In a shell that is in an environment of its own, pip would look there.
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV
"$environment/bin/python" -m pip install --quiet "./python[test]"

step "mypy, Python $version"
# From the sources, in their folder: there are the settings.
(cd python && "../$environment/bin/python" -m mypy --strict plasma)

step "ruff"
"$environment/bin/ruff" format --quiet --check --config python/pyproject.toml python examples/python benches
"$environment/bin/ruff" check --quiet --config python/pyproject.toml python examples/python benches

step "pytest, Python $version"
# Not `python -m pytest`, which would find the sources instead of what was installed.
"$environment/bin/pytest" python

step "pytest, the client on stores without a directory"
client=(python/tests/test_{client,buffers,in_place,aio,values,threads,outliving,zero_copy}.py
    python/tests/test_{told_seals,outliving_faults}.py)
PLASMA_TEST_NO_DIRECTORY=1 "$environment/bin/pytest" "${client[@]}"
