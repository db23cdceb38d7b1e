#!/usr/bin/env bash
# Tests chronfs for Python: in a virtual environment below target/, with numpy, pyarrow, polars and duckdb; then runs the
# examples. Takes about a minute after the build. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=$PWD/target/python
requirements=bindings/python/tests/requirements.txt
if ! cmp -s "$requirements" "$venv/installed.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
    cp "$requirements" "$venv/installed.txt"
fi
VIRTUAL_ENV=$venv "$venv/bin/maturin" develop --quiet --locked --manifest-path bindings/python/Cargo.toml
"$venv/bin/python" -m pytest bindings/python "$@"
for example in live spread; do
    "$venv/bin/python" "bindings/python/examples/$example.py" "$venv/$example.svg" > /dev/null
done
