#!/bin/sh
# Make the simulation's authority, certificate and kits, each kit in a volume of its own, and fill in what the sites'
# administrators would: data and policy. Run again it changes nothing.
#
# Starts as root to give the fresh volumes to the federation's user, and goes on as that user.
set -eu
if [ "$(id -u)" = 0 ]; then
  chown 10001:10001 /kits/site-* /split/agent /split/node
  exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs sh "$0"
fi
umask 077
dpfpl-server provision --server /var/lib/dpfpl/server --out /kits --address server \
  --site site-a --site site-b --site site-c
index=0
for site in site-a site-b site-c; do
  python3 /simulation/fill_in_kit.py "/kits/$site" "$index" 3
  index=$((index + 1))
done
# site-c runs agent and SuperNode in two containers, so each gets its own half of the kit.
for file in site.toml policy.toml agent.key; do cp -n "/kits/site-c/$file" /split/agent/; done
for file in site.toml ca.crt node.key; do cp -n "/kits/site-c/$file" /split/node/; done
echo "provisioned"
