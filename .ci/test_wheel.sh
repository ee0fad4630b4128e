#!/usr/bin/env bash
# Build the sdist and, from it, the wheel; check what they hold; use the wheel where no checkout is near.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

make -C "$root" .venv/.installed-dev
python="$root/.venv/bin/python"
"$python" -m build --outdir "$work/dist" "$root"
"$python" "$root/.ci/check_archives.py" "$work"/dist/*

"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --disable-pip-version-check \
  -c "$root/constraints.txt" "$work"/dist/*.whl
cp "$root/.ci/smoke.py" "$work/"
cd "$work"
# -I: neither PYTHONPATH nor the current folder may lend a module that the wheel lacks.
venv/bin/python -I smoke.py
