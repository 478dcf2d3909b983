#!/usr/bin/env bash
# Measures the store and its peers side by side, in turn, on this machine: the original (pyarrow 11,
# its Python and its C++ client), Redis, shared memory, Ray, and what the machine allows at best.
# Needs Rust and a Python from 3.10 on (3.10 or 3.11 for the original); builds and installs inside
# the checkout, except for redis-server, which it installs if it may. benches/README.md has the rest.
#
#   scripts/bench.sh --quick                    about a minute, when everything is built
#   scripts/bench.sh --json FILE                results, and FILE.svg with the plot
#   scripts/bench.sh --only 'put 1 KB,wake'     some of it; --list says what there is
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 benches/side_by_side "$@"
