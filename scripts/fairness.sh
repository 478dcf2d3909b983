#!/usr/bin/env bash
# How long small requests take while others load the store: in each row the load is on a second
# store of this machine (calm), and then on the same one. Prints a table. Needs Rust.
#
#   scripts/fairness.sh                               about 8 minutes
#   scripts/fairness.sh --only wait,list --rounds 1   some of it; --help has the options
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --quiet --release --package plasma-store --package plasma-fairness
programs=${CARGO_TARGET_DIR:-target}/release
exec "$programs/plasma-fairness" measure --store "$programs/plasma_store" "$@"
