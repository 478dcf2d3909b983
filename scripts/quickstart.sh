#!/usr/bin/env bash
# The main job on real data: starts a store, one process puts a table into it, another one reads it
# in place, and the store is stopped again. Needs Rust; everything stays inside the checkout.
#
#   scripts/quickstart.sh [TABLE]      a CSV or Parquet file; a small one is included
set -euo pipefail
table="${1:+$(realpath -- "$1")}"
cd "$(dirname "$0")/.."
table="${table:-examples/data/penguins.csv}"
if [[ ! -r "$table" ]]; then
    echo "quickstart: cannot read $table" >&2
    exit 2
fi

echo "== building (the first time takes a few minutes)"
cargo build --quiet --bin plasma_store
cargo build --quiet -p plasma-examples
bin=${CARGO_TARGET_DIR:-target}/debug

work="$(mktemp -d)"
socket="$work/plasma.sock"
store=
stop() {
    if [[ -n "$store" ]]; then
        kill "$store" 2>/dev/null || true
        wait "$store" || true
    fi
    rm -rf "$work"
}
trap stop EXIT

bytes="$(stat -c %s "$table")"
# A table takes more room in memory than in a compressed file.
capacity=$((bytes * 20 + 64 * 1024 * 1024))
echo "== plasma_store -m $capacity -s $socket"
"$bin/plasma_store" -m "$capacity" -s "$socket" &
store=$!

id="$(od -An -N20 -tx1 /dev/urandom | tr -d ' \n')"
echo "== a consumer waits for the table, a producer puts it"
"$bin/consume_table" "$id" "$socket" &
consumer=$!
"$bin/produce_table" "$table" "$id" "$socket"
wait "$consumer"

echo "== stopping the store"
kill -TERM "$store"
wait "$store"
store=
echo "== done"
