#!/bin/sh
# Take out of an environment what no program of ours runs: uv (a package manager that Flower brings along), tests,
# headers, static libraries. sh slim.sh /opt/dpfpl
set -eu
rm -f "$1"/bin/uv "$1"/bin/uvx "$1"/bin/[Aa]ctivate*
cd "$1"/lib/python3*/site-packages
rm -rf torch/test torch/include torch/share torch/lib/cmake
find torch/bin -type f ! -name torch_shm_manager -delete 2>/dev/null || true
find . -type d -name tests -prune -exec rm -rf {} +
find . -type f \( -name '*.a' -o -name '*.pxd' -o -name '*.pyx' \) -delete
