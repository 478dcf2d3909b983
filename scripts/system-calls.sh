#!/usr/bin/env bash
# Counts the system calls of a reader that gets and releases objects: a thousand times, and a
# million times. What is sealed is found without the store, so both need the same few. Needs Rust
# and strace.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v strace > /dev/null || { echo "${0##*/}: strace is missing" >&2; exit 1; }
cargo build --quiet --release --package plasma-store --package plasma-side-by-side

programs=${CARGO_TARGET_DIR:-target}/release
folder=$(mktemp -d)
"$programs/plasma_store" -m 1GB -s "$folder/socket" 2> "$folder/log" &
store=$!
trap 'kill "$store"; wait "$store" || true; rm -r "$folder"' EXIT
for _ in $(seq 100); do
    [[ -S "$folder/socket" ]] && break
    sleep 0.1
done
echo 'fill 1000 1000' | "$programs/plasma-side-by-side" store "$folder/socket" > /dev/null

for count in 1000 1000000; do
    printf '\n' | strace -f -c -o "$folder/calls" \
        "$programs/plasma-side-by-side" read "$folder/socket" "$count" 1 > /dev/null
    total=$(awk '$NF == "total" { print $(NF - 2) }' "$folder/calls")
    often=$(awk 'NR > 2 && NF >= 5 && $NF != "total" { print $4, $NF }' "$folder/calls" |
        sort -rn | head -3 | paste -sd ';')
    printf '%8d gets: %s system calls, most often: %s\n' "$count" "$total" "$often"
done
