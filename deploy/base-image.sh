#!/usr/bin/env bash
# Make a stand-in for the image python:3.11-slim-bookworm out of Debian's packages, for a machine that reaches Debian's
# packages but no image registry:  deploy/base-image.sh [IMAGE]
# Needs root, mmdebstrap and a running Docker engine (DOCKER and DOCKER_HOST say which). Does nothing if the image is
# there. The images are written for the real one; a test that ran on the stand-in says so.
set -euo pipefail
image=${1:-python:3.11-slim-bookworm}
docker=${DOCKER:-docker}
if "$docker" image inspect "$image" >/dev/null 2>&1; then
  echo "base image: $image is there"
  exit 0
fi
command -v mmdebstrap >/dev/null || { echo "base image: needs mmdebstrap (apt-get install mmdebstrap)" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mmdebstrap -q --variant=essential --include=python3,python3-venv,python3-pip,ca-certificates,libstdc++6 \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$work/root.tar"
mkdir "$work/root"
tar -xf "$work/root.tar" -C "$work/root" --exclude='./dev/*'
rm -rf "$work/root.tar" "$work/root/var/lib/apt/lists/"* "$work/root/usr/lib/python3.11/EXTERNALLY-MANAGED"
# This machine's own certificate authorities, without which a build cannot verify an index behind a company's proxy.
cp /usr/local/share/ca-certificates/*.crt "$work/root/usr/local/share/ca-certificates/" 2>/dev/null || true
chroot "$work/root" update-ca-certificates >/dev/null 2>&1
ln -sf /usr/bin/python3 "$work/root/usr/local/bin/python3"
ln -sf /usr/bin/python3 "$work/root/usr/local/bin/python"
tar --numeric-owner -C "$work/root" -c . | "$docker" import --change 'CMD ["python3"]' \
  --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' - "$image" >/dev/null
echo "base image: made a stand-in for $image"
