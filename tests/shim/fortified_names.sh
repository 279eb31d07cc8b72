#!/bin/sh
# fortified_names.sh PROGRAM - the program calls the checked forms of what reads, so that its test is one of them.
missing=
names=$(nm -D --undefined-only "$1" | awk '{print $2}' | sed 's/@.*//')
for name in __read_chk '__pread\(64\)*_chk' __fread_chk __fread_unlocked_chk __fgets_chk __recv_chk __recvfrom_chk; do
    echo "$names" | grep -q -x "$name" || missing="$missing $name"
done
[ -z "$missing" ] || { echo "$1 does not call$missing"; exit 1; }
