#!/usr/bin/env bash
# Tests chronfs for C and C++: installs a build below target/c, compiles the tests against it as a user would, and runs
# them with the shared and the static library, under valgrind and with AddressSanitizer; then the example. Takes half a
# minute after the build. CHRONFS_BIN has the libraries if they are built already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=$PWD/target/c
prefix=$out/prefix
fail() {
    echo "$0: $*" >&2
    exit 1
}
rm -rf "$out"
mkdir -p "$out/archive"
PROFILE=dev bash bindings/c/install.sh "$prefix"
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig LD_LIBRARY_PATH=$prefix/lib
read -ra flags <<< "$(pkg-config --cflags chronfs)"
read -ra shared <<< "$(pkg-config --libs chronfs)"
# Found first, where there is only the archive.
ln -s "$prefix/lib/libchronfs.a" "$out/archive"
read -ra static <<< "-L$out/archive $(pkg-config --static --libs chronfs)"
flags+=(-g -O1 -pthread -Wall -Wextra -Wpedantic -Wshadow -Werror "-DVERSION=\"$(pkg-config --modversion chronfs)\"")

declared=$(grep -oE '\bchronfs_[a-z_]+\(' "$prefix/include/chronfs.h" | tr -d '(' | sort -u)
exported=$(nm -D --defined-only "$prefix/lib/libchronfs.so" | awk '{print $3}' | sort)
[ "$declared" = "$exported" ] || fail "the library exports other names than the header declares:
$(diff <(echo "$declared") <(echo "$exported"))"

compile_c() { gcc -std=c11 "${flags[@]}" "$@"; }
compile_cpp() { g++ -std=c++17 -Wconversion "${flags[@]}" "$@"; }
# Runs a test in a directory of its own.
check() {
    local dir
    dir=$(mktemp -d "$out/queues.XXXXXX")
    printf '== %s\n' "$*"
    "$@" "$dir"
    rm -rf "$dir"
}
# Its warnings of an unhandled system call: futex_waitv, without which the library uses other calls.
# Fair, so that a thread that polls does not keep the others from running.
valgrind=(valgrind --quiet --fair-sched=yes --error-exitcode=99 --leak-check=full --show-leak-kinds=definite,indirect
    --errors-for-leak-kinds=definite,indirect --child-silent-after-fork=no)

for language in c cpp; do
    source=(bindings/c/tests/*."$language")
    test=$out/test-$language
    "compile_$language" -o "$test" "${source[@]}" "${shared[@]}"
    "compile_$language" -o "$test-static" "${source[@]}" "${static[@]}"
    "compile_$language" -fsanitize=address,undefined -fno-sanitize-recover=all -o "$test-asan" "${source[@]}" "${shared[@]}"
    [[ $(readelf -d "$test") =~ NEEDED.*"[libchronfs.so.0]" ]] || fail "$test: does not need libchronfs.so.0"
    [[ ! $(readelf -d "$test-static") =~ "[libchronfs" ]] || fail "$test-static: needs the shared library"
    check "$test"
    check "$test-static"
    check "$test-asan"
    check "${valgrind[@]}" "$test"
done

# The programs of the page, and its commands, for a user whose home is here.
page() { sed -n "/^\`\`\`$1\$/,/^\`\`\`\$/{/^\`\`\`/!p}" docs/c.md; }
for language in c cpp; do
    page "$language" > "$out/page.$language"
    "compile_$language" -o "$out/page-$language" "$out/page.$language" "${shared[@]}"
done
commands=$(page sh | sed "s|\$HOME|$out/home|g; s|program|$out/page|g")
[ -n "$commands" ] || fail "docs/c.md has no commands"
(export PROFILE=dev && eval "$commands")
[[ $(ldd "$out/page") == *libchronfs.so.0* ]] || fail "the page's command does not link the library"
compile_c -o "$out/example" bindings/c/example.c "${shared[@]}"
"$out/example" "$out/queue" hello
[ "$("$out/example" "$out/queue" again)" = '2: again' ] || fail "the example does not continue where it has stopped"
echo "$0: all well"
