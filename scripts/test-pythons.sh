#!/usr/bin/env bash
# scripts/test-python.sh on every Python that the package is for, as far as they are installed here:
# on PATH, or by pyenv. Each has its own environment, .venvs/3.X. Fails if one of them failed, or if
# none was found.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly VERSIONS=(3.10 3.11 3.12 3.13)

# pyenv puts a python3.X on PATH that only says that it is not chosen, so it has to be run.
find_python() {
    local version=$1 candidate
    for candidate in "python$version" \
        "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/"python$version"; do
        if "$candidate" -c 'import sys, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

passed=() failed=() missing=()
for version in "${VERSIONS[@]}"; do
    if ! python=$(find_python "$version"); then
        missing+=("$version")
    elif scripts/test-python.sh "$python" ".venvs/$version"; then
        passed+=("$version")
    else
        failed+=("$version")
    fi
done

printf '\n== passed: %s\n' "${passed[*]:-none}"
printf '== failed: %s\n' "${failed[*]:-none}"
printf '== not found, so not tested: %s\n' "${missing[*]:-none}"
((${#failed[@]} == 0 && ${#passed[@]} > 0))
