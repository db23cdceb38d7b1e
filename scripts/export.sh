#!/usr/bin/env bash
# Tests that duckdb, polars and pyarrow read what chron-export writes: in the virtual environment of venv.sh. Builds
# chron-export, or takes that in $CHRONFS_BIN. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bin=${CHRONFS_BIN:-}
if [ -z "$bin" ]; then
    cargo build --quiet --locked -p chronfs-export
    bin=$PWD/target/debug
fi
venv=$(bash scripts/venv.sh)
CHRON_EXPORT=$bin/chron-export "$venv/bin/python" -m pytest -q -W error crates/export/tests "$@"
