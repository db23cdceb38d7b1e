#!/usr/bin/env bash
# A virtual environment below target/ with chronfs for Python, built from here, and what its tests and examples import:
# numpy, pyarrow, polars, duckdb. Prints its directory. Made once; chronfs is built again whenever its sources have changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=$PWD/target/python
requirements=bindings/python/tests/requirements.txt
if ! cmp -s "$requirements" "$venv/installed.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
    cp "$requirements" "$venv/installed.txt"
fi
VIRTUAL_ENV=$venv "$venv/bin/maturin" develop --quiet --locked --manifest-path bindings/python/Cargo.toml >&2
printf '%s\n' "$venv"
