#!/bin/sh
# Installs what the build needs and this machine lacks: a C++ compiler for
# RocksDB, libclang for its bindings, protoc for a client that tests use, and
# ccache so that RocksDB is compiled only once. Says what it installs, asks nothing, and does nothing when nothing
# is missing. With the argument `lint`, also rustfmt and clippy; with `clients`,
# also what the tests with clients of others run; with `proof`, what makes
# networks and disks that fail, where that can be installed; with `guided`, also
# cargo-fuzz.
set -eu

say() { echo "deps: $*" >&2; }
fail() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Whether any of the paths exists; unmatched patterns arrive as they are.
any() {
    for path in "$@"; do
        if [ -e "$path" ]; then return 0; fi
    done
    return 1
}

have_cxx() { [ -n "${CXX:-}" ] || have c++; }

# The library alone is not enough: bindgen also needs clang's own headers.
have_libclang() {
    if [ -n "${LIBCLANG_PATH:-}" ]; then return 0; fi
    any /usr/lib/llvm*/lib/libclang.so* /usr/lib/llvm*/lib/libclang-[0-9]*.so* \
        /usr/lib/libclang.so* /usr/lib64/libclang.so* /usr/lib64/llvm*/lib*/libclang.so* \
        /usr/local/lib/libclang.so* || return 1
    any /usr/lib/llvm*/lib/clang/*/include/stddef.h /usr/lib/clang/*/include/stddef.h \
        /usr/lib64/clang/*/include/stddef.h /usr/local/lib/clang/*/include/stddef.h
}

# Debian has the messages that protoc itself brings in a package of their own.
have_protoc() {
    if [ -n "${PROTOC:-}" ]; then return 0; fi
    have protoc || return 1
    bin=$(dirname "$(command -v protoc)")
    any "$bin/../include/google/protobuf/descriptor.proto"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        fail "not root, and there is no sudo: run as root: $*"
    fi
}

install_debian() {
    packages=
    have_cxx || packages="$packages g++"
    have make || packages="$packages make"
    have_libclang || packages="$packages libclang-dev"
    have_protoc || packages="$packages protobuf-compiler libprotobuf-dev"
    if [ -z "$packages" ]; then return 0; fi
    # Not needed, but a clean build then takes seconds. Only along with the
    # rest: a compiler that changes later would compile RocksDB once more.
    have ccache || packages="$packages ccache"
    say "installing$packages"
    as_root apt-get update -q || say "apt-get update failed; trying with the lists there are"
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends $packages
}

# Not tried on a Mac.
install_macos() {
    xcode-select -p >/dev/null 2>&1 ||
        fail "the Xcode command line tools are missing: run \`xcode-select --install\`"
    packages=
    # raft's message definitions are compiled with protoc 3, which they bundle
    # for every platform but this one.
    if [ "$(uname -m)" != arm64 ]; then
        have_protoc || packages="$packages protobuf"
    elif [ -z "${PROTOC:-}" ]; then
        any /opt/homebrew/opt/protobuf@21/bin/protoc || packages="$packages protobuf@21"
    fi
    if [ -z "$packages" ]; then return 0; fi
    have brew || fail "Homebrew is missing: install it, or$packages by other means"
    have ccache || packages="$packages ccache"
    say "installing$packages"
    # shellcheck disable=SC2086 # a list of words
    brew install $packages
}

check_elsewhere() {
    missing=
    have_cxx || missing="$missing, a C++20 compiler"
    have_libclang || missing="$missing, libclang with its headers (or set LIBCLANG_PATH)"
    have_protoc || missing="$missing, protoc, the compiler of protocol buffers (or set PROTOC)"
    if [ -n "$missing" ]; then fail "please install${missing#,}"; fi
}

install_lint() {
    components=
    cargo fmt --version >/dev/null 2>&1 || components="$components rustfmt"
    cargo clippy --version >/dev/null 2>&1 || components="$components clippy"
    if [ -z "$components" ]; then return 0; fi
    have rustup || fail "please install$components for this cargo"
    say "installing$components"
    # shellcheck disable=SC2086 # a list of words
    rustup component add $components
}

install_clients() {
    have apt-get || fail "please install etcd, etcdctl, python3 with venv, node and npm"
    packages=
    have etcd || packages="$packages etcd-server"
    have etcdctl || packages="$packages etcd-client"
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"
    have npm || packages="$packages nodejs npm"
    if [ -z "$packages" ]; then return 0; fi
    say "installing$packages"
    as_root apt-get update -q || say "apt-get update failed; trying with the lists there are"
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -q --no-install-recommends $packages
}

# A proof that cannot be run says so itself.
install_proof() {
    packages=
    have nft || packages="$packages nftables"
    have ip || packages="$packages iproute2"
    have mkfs.ext4 || packages="$packages e2fsprogs"
    have mkfs.xfs || packages="$packages xfsprogs"
    if [ -z "$packages" ]; then return 0; fi
    have apt-get || { say "please install$packages"; return 0; }
    say "installing$packages"
    as_root apt-get update -q || say "apt-get update failed; trying with the lists there are"
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends $packages || say "could not install$packages"
}

have cargo || fail "cargo is missing: see https://rustup.rs"
if [ "$(uname -s)" = Darwin ]; then
    install_macos
elif have apt-get; then
    install_debian
else
    check_elsewhere
fi
case "${1:-}" in
    lint) install_lint ;;
    clients) install_clients ;;
    proof) install_proof ;;
    guided) have cargo-fuzz || { say "installing cargo-fuzz"; cargo install --locked cargo-fuzz; } ;;
esac
