#!/bin/sh
# GPU tests and benches on an offline CUDA host with torch and triton; records and logs go to the folder $1.
# Needs the folder wheelhouse/ that `make wheelhouse` made.
set -eu
out=$1
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
test -d wheelhouse || { echo "wheelhouse/: not found; run 'make wheelhouse' on a machine with a package index" >&2; exit 2; }
# The host's own python has torch and triton; what else is needed goes to a folder of its own.
site=build/gpu-site
rm -rf "$site"
python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" wheelhouse/*.whl
PYTHONPATH=$PWD/$site
export PYTHONPATH
# -P: without it the checkout in the current folder would hide the installed package.
jepa_fast() { python3 -P -c 'from jepa_fast.commands.main import main; main()' "$@"; }
jepa_fast doctor
status=0
python3 -P -m pytest -m gpu -p no:cacheprovider --junitxml="$out/gpu-tests.xml" || status=$?
jepa_fast bench --save --results "$out" || status=$?
exit $status
