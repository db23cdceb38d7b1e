#!/usr/bin/env bash
# Tests that duckdb, polars and pyarrow read what chron-export writes: in the virtual environment of venv.sh. Arguments go
# to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo build --quiet --locked -p chronfs-export
venv=$(bash scripts/venv.sh)
CHRON_EXPORT=$PWD/target/debug/chron-export "$venv/bin/python" -m pytest -q -W error crates/export/tests "$@"
