#!/usr/bin/env bash
# Tests chronfs for Python in its virtual environment (venv.sh), then runs the examples. Takes about a minute after the
# build. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=$(bash scripts/venv.sh)
"$venv/bin/python" -m pytest bindings/python "$@"
for example in live spread; do
    "$venv/bin/python" "bindings/python/examples/$example.py" "$venv/$example.svg" > /dev/null
done
