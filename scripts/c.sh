#!/usr/bin/env bash
# Tests chronfs for C and C++: installs a build below target/c, compiles the tests against it as a user would, and runs
# them with the shared and the static library, under valgrind and with AddressSanitizer; then the example. Takes about a
# minute after the build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=$PWD/target/c
prefix=$out/prefix
tests=bindings/c/tests
rm -rf "$out"
mkdir -p "$out"
PROFILE=dev bash bindings/c/install.sh "$prefix"
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig LD_LIBRARY_PATH=$prefix/lib
read -ra flags <<< "$(pkg-config --cflags chronfs)"
read -ra shared <<< "$(pkg-config --libs chronfs)"
read -ra static <<< "$(pkg-config --static --libs chronfs)"
warnings=(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror)
# Before the libraries: only the archive has the name.
static=(-L"$out/static" "${static[@]}")
mkdir "$out/static"
ln -s ../prefix/lib/libchronfs.a "$out/static"

compile_c() { gcc -std=c11 -g -O1 -pthread "${warnings[@]}" "${flags[@]}" -DVERSION="\"$(pkg-config --modversion chronfs)\"" "$@"; }
compile_cpp() { g++ -std=c++17 -g -O1 -pthread "${warnings[@]}" "${flags[@]}" "$@"; }
# Runs a test in a directory of its own.
check() {
    local dir
    dir=$(mktemp -d "$out/queues.XXXXXX")
    printf '== %s\n' "$*"
    "$@" "$dir"
    rm -rf "$dir"
}

for language in c cpp; do
    test=$out/test-$language
    "compile_$language" -o "$test" "$tests/test.$language" "${shared[@]}"
    "compile_$language" -o "$test-static" "$tests/test.$language" "${static[@]}"
    "compile_$language" -fsanitize=address,undefined -fno-sanitize-recover=all -o "$test-asan" "$tests/test.$language" "${shared[@]}"
    readelf -d "$test" | grep -q 'NEEDED.*\[libchronfs.so.0\]'
    readelf -d "$test-static" | grep NEEDED | grep -q chronfs && { echo "$test-static: needs the shared library" >&2; exit 1; }
    check "$test"
    check "$test-static"
    check "$test-asan"
    check valgrind --quiet --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite,indirect \
        --show-leak-kinds=definite,indirect --child-silent-after-fork=no "$test"
done
# A header that C++ programs include must be one for C, too.
compile_c -x c -fsyntax-only "$prefix/include/chronfs.h"

gcc -o "$out/example" bindings/c/example.c $(pkg-config --cflags --libs chronfs)
"$out/example" "$out/queue" hello
[ "$("$out/example" "$out/queue" again)" = '2: again' ]
echo "$0: all well"
