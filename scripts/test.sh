#!/usr/bin/env bash
# Every check and every test, in the order in which they fail fastest. Needs Rust and a Python from
# 3.10 on; installs nothing outside the checkout. Tests that need root (huge pages, small file
# systems) say so when they are left out. Ends with one line of what passed.
set -euo pipefail
cd "$(dirname "$0")/.."

# Shells start background jobs with SIGINT ignored, and nohup adds SIGHUP. All that is started here
# would inherit that, and tests that end something with these signals would wait for ever.
if [[ -z ${PLASMA_TEST_SIGNALS_RESET-} ]]; then
    PLASMA_TEST_SIGNALS_RESET=1 exec env --default-signal=INT,QUIT,HUP scripts/test.sh
fi

step() { printf '\n== %s\n' "$*"; }

export RUSTDOCFLAGS="${RUSTDOCFLAGS:-} -Dwarnings"

step "rustfmt"
cargo fmt --check

step "clippy, everything"
cargo clippy --quiet --workspace --all-targets --all-features -- -Dwarnings

step "clippy, the client alone"
cargo clippy --quiet --lib --no-default-features -- -Dwarnings

step "rustdoc"
cargo doc --quiet --no-deps --all-features

step "tests"
cargo test --all-features

step "tests of the client, on stores without a directory"
PLASMA_TEST_NO_DIRECTORY=1 cargo test --all-features --lib client::
PLASMA_TEST_NO_DIRECTORY=1 cargo test --all-features --test client_behaviour --test client_liveness \
    --test direct_sharing --test fork --test arrow --test memory --test many_clients \
    --test told_seals --test outliving_faults

step "the main job on real data, from CSV and from Parquet"
scripts/quickstart.sh
scripts/quickstart.sh examples/data/penguins.parquet

scripts/test-python.sh

step "whether the benchmark still measures everything"
scripts/bench.sh --smoke

step "all checks and tests passed"
