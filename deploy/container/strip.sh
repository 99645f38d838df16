#!/bin/sh
# Take out of an image's root file system what a running container never needs: package managers, compilers' leftovers,
# and every file that would run as its owner. Run as root in a build stage whose result is copied into an empty image.
set -eu
rm -rf /usr/lib/python3*/site-packages/pip* /usr/lib/python3/dist-packages/* /usr/lib/python3*/ensurepip \
  /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/idlelib \
  /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/2to3* /usr/bin/pip* /root/.cache /usr/share/python-wheels
rm -rf /usr/bin/apt* /usr/lib/apt /etc/apt /var/lib/apt /var/cache/apt /usr/lib/x86_64-linux-gnu/libapt* \
  /usr/bin/dpkg* /usr/lib/dpkg /var/lib/dpkg/info /var/cache/* /var/log/* /tmp/* /usr/share/doc /usr/share/man
find / -xdev -type f -perm /6000 -exec chmod a-s {} +
