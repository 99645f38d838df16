#!/usr/bin/env bash
# Collect the wheels of everything that the images install into deploy/wheels, on a machine that reaches a package index:
#   [TORCH=cpu] deploy/wheels.sh [arguments for pip]
# TORCH=cpu takes torch from PyTorch's public index of CPU builds (or from TORCH_INDEX); without, pip's own index decides.
# PYTHON must be of the images' version (3.11) and on the same kind of machine. Building the images afterwards with
# --build-arg PIP_ARGS=--no-index needs no index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "wheels: needs Python 3.11, the images have that")'
mkdir -p deploy/wheels
needs=$(mktemp)
trap 'rm -f "$needs"' EXIT
"$python" deploy/container/requirements.py common server 'client[agent,dicom]' > "$needs"
"$python" deploy/container/requirements.py build >> "$needs"
if [ "${TORCH:-}" = cpu ]; then
  "$python" -m pip wheel --quiet --no-deps "$@" -w deploy/wheels --find-links deploy/wheels -c constraints.txt \
    --retries 1 --extra-index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" torch
fi
"$python" -m pip wheel --quiet "$@" -w deploy/wheels --find-links deploy/wheels -c constraints.txt -r "$needs"
echo "wheels: $(find deploy/wheels -name '*.whl' | wc -l) in deploy/wheels, $(du -sh deploy/wheels | cut -f1)"
