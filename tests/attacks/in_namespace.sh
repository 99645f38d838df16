#!/bin/sh
# in_namespace.sh FOLDER COMMAND...: run as root under `unshare -m`; two users exist inside, and a Python below a closed
# home folder can be reached by them. Nothing of this is seen, or left, outside.
set -e
folder=$1; shift
mount --make-rprivate /
for file in passwd group; do cp "/etc/$file" "$folder/$file"; chmod 644 "$folder/$file"; done
for user in a:64001 n:64002; do
  name=dpfpl-${user%%:*}; number=${user##*:}
  echo "$name:x:$number:$number::/nonexistent:/usr/sbin/nologin" >> "$folder/passwd"
  echo "$name:x:$number:" >> "$folder/group"
done
for file in passwd group; do mount --bind "$folder/$file" "/etc/$file"; done
python=$(readlink -f "$1")
home=/$(echo "$python" | cut -d/ -f2)
if [ "$home" = /root ]; then
  below=/root/$(echo "$python" | cut -d/ -f3)
  mkdir "$folder/python"
  mount --bind "$below" "$folder/python"
  mount -t tmpfs -o mode=755 none /root
  mkdir "$below"
  mount --move "$folder/python" "$below"
fi
exec "$@"
