#!/usr/bin/env bash
# Runs the simulation of the store for longer than the tests do: optimised, with all assertions.
#   scripts/simulate.sh                500 known seeds and 500 new ones, 20000 steps each
#   scripts/simulate.sh --seeds N      N known seeds and N new ones
#   scripts/simulate.sh --steps N      N steps a seed
#   scripts/simulate.sh SEED           one seed, 2000 steps as in the tests; also with --steps
# Prints the seeds. When a run fails it prints the seed, the last steps and how to replay them, and
# ends with a code that is not zero.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }

seed='' seeds='' steps=''
while [[ $# -gt 0 ]]; do
    case "$1" in
        --seeds) seeds="${2:-}"; shift 2 || usage ;;
        --steps) steps="${2:-}"; shift 2 || usage ;;
        *) seed="$1"; shift ;;
    esac
done
for number in "$seed" "$seeds" "$steps"; do
    [[ "$number" =~ ^[0-9]*$ ]] || usage
done

if [[ -n "$seed" ]]; then
    export PLASMA_SEED="$seed" PLASMA_STEPS="${steps:-2000}"
else
    export PLASMA_STEPS="${steps:-20000}"
    if [[ -n "$seeds" ]]; then export PLASMA_SEEDS="$seeds"; fi
fi
export PLASMA_NEW_SEEDS=1
export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true
exec cargo test --release --quiet --lib store::tests::simulation -- --nocapture
