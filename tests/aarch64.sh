#!/bin/sh
# aarch64.sh - builds everything for aarch64 on Debian or Ubuntu for x86-64, and runs the tests of the codec, of reading and of packing under qemu. Not
# part of run.sh: it installs a compiler and libraries for another processor (as root), and takes three minutes.
#
#   tests/aarch64.sh [BUILD]     default: build-aarch64; SETUP=0: what it installs is there already
#
# What measures memory, runs the command or pages is not run: qemu has memory of its own, the tests of the command start it without qemu, and there is no
# userfaultfd.
set -eu
cd "$(dirname "$0")/.."
build=${1:-build-aarch64}
if [ "${SETUP:-1}" != 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "aarch64.sh: not root: install what it lists yourself, then SETUP=0" >&2; exit 2; }
    dpkg --add-architecture arm64
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends cmake ninja-build gcc-aarch64-linux-gnu libc6-dev-arm64-cross \
        qemu-user-static libzstd-dev:arm64 libxxhash-dev:arm64 libjansson-dev:arm64 liburing-dev:arm64 libcmocka-dev:arm64 >/dev/null
fi
mkdir -p "$build"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CROSSCOMPILING_EMULATOR=/usr/bin/qemu-aarch64-static >"$build/log.txt" 2>&1 ||
    { cat "$build/log.txt"; exit 1; }
cmake --build "$build" >"$build/log.txt" 2>&1 || { tail -n 60 "$build/log.txt"; exit 1; }
ctest --test-dir "$build" --output-on-failure -j "$(nproc)" --no-tests=error \
    -R '^(test_codec|test_codec_malformed|test_content_hash|test_safetensors|test_malformed|test_reader|test_writer|test_memory|bench_decode_check)$'
