#!/usr/bin/env bash
# Whether a told seal is ever denied: programs that seal objects and tell other programs through a
# pipe, who ask for them, for as long as it takes to tell of a million. From Rust and from Python,
# on stores with and without a directory, which are stopped now and then.
#
#   scripts/soak.sh [SEALS]            default: 1000000
#
# Ends with one line: how many seals were told of, how many questions were asked, how many of them
# were denied. Its code is 0 if none was, and 1 otherwise. Takes about 20 minutes for a million;
# needs Rust and a Python from 3.10 on, and installs nothing outside the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."

seals=${1:-1000000}
if [[ $# -gt 1 || ! $seals =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi

step() { printf '\n== %s\n' "$*"; }

environment=.venv
step "building, and $environment"
cargo test --quiet --release --test told_seals --no-run
if ! "$environment/bin/python" -c '' 2>/dev/null; then
    python3 -m venv --clear "$environment"
fi
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV PLASMA_TEST_NO_DIRECTORY
"$environment/bin/python" -m pip install --quiet "./python[test]"

said=$(mktemp)
trap 'rm -f "$said"' EXIT
failed=

# Eight kinds of programs take part, and each does its share: a part is two kinds.
share=$(((seals + 7) / 8))
export PLASMA_TEST_SEALS=$share
# Much more than it takes; every test has a limit of its own as well.
limit=$((600 + share / 10))

# part NAME COMMAND...
part() {
    step "$1: 2 x $share seals"
    timeout --kill-after=60 "$limit" "${@:2}" 2>&1 | tee -a "$said" || failed=1
}

rust=(cargo test --quiet --release --test told_seals -- --nocapture --test-threads=1 --exact
    who_is_told_by_a_busy_program_finds_the_object
    who_is_told_by_a_busy_program_without_a_table_finds_the_object)
python=("$environment/bin/pytest" --quiet -s python/tests/test_told_seals.py)

part "Rust" "${rust[@]}"
part "Rust, stores without a directory" env PLASMA_TEST_NO_DIRECTORY=1 "${rust[@]}"
part "Python" "${python[@]}" -k "finds_the_object and True"
part "Python, stores without a directory" env PLASMA_TEST_NO_DIRECTORY=1 "${python[@]}" \
    -k finds_the_object

step "all together"
read -r told asked denied < <(sed -En \
    's/^[.F]*([0-9]+) seals told, ([0-9]+) questions asked, ([0-9]+) denied$/\1 \2 \3/p' "$said" |
    awk '{ told += $1; asked += $2; denied += $3 } END { print told + 0, asked + 0, denied + 0 }')
echo "$told seals told, $asked questions asked, $denied denied"
[[ -z $failed && $denied == 0 && $told -ge $seals ]]
