#!/bin/sh
# run.sh - runs one transcript test: NAME.sh in a fresh directory, its stdout, stderr and exit status compared with NAME.out,
# NAME.err and NAME.exit (a missing one means empty, or 0). Times and rates are masked, because they differ each run.
#
#   tests/cli/run.sh BUILD-DIRECTORY NAME         UPDATE=1 writes the expected files instead of comparing
set -u
build=$(cd "$1" && pwd)
name=$2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'chmod -R u+rwx "$work"; rm -rf "$work"' EXIT
mkdir "$work/cwd"

# What a test may use: the command, the small model, and no variables of ours from outside.
for variable in $(env | sed -n 's/^\(CODEC_[A-Za-z0-9_]*\)=.*/\1/p'); do unset "$variable"; done
unset LD_PRELOAD LD_LIBRARY_PATH TERM COLUMNS
export PATH="$build/bin:$PATH" BARD="$here/../models/bard" HERE="$here" BUILD="$build" LC_ALL=C

(cd "$work/cwd" && timeout "${CLI_TIMEOUT:-900}" sh "$here/$name.sh") >"$work/raw.out" 2>"$work/raw.err"
status=$?

mask() {
    sed -E -e 's/[0-9]+\.[0-9]+ s(, [0-9]+ MB\/s)?/T s/g' -e "s|$work/cwd|CWD|g" -e "s|$build|BUILD|g" -e "s|$here|HERE|g" \
        -e 's/partial-[A-Za-z0-9]{6}/partial-XXXXXX/g'
}
mask <"$work/raw.out" >"$work/got.out"
mask <"$work/raw.err" >"$work/got.err"
[ $status = 0 ] && : >"$work/got.exit" || echo $status >"$work/got.exit"

bad=0
for kind in out err exit; do
    expected=$here/$name.$kind
    if [ "${UPDATE:-}" = 1 ]; then
        rm -f "$expected"
        [ ! -s "$work/got.$kind" ] || cp "$work/got.$kind" "$expected"
        continue
    fi
    [ -e "$expected" ] || expected=/dev/null
    diff -u --label "expected $kind" --label "got $kind" "$expected" "$work/got.$kind" || bad=1
done
exit $bad
