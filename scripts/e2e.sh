#!/usr/bin/env bash
# Runs Kubernetes' own end-to-end suite against a lab of its own, after `make build` and as root:
#
#   scripts/e2e.sh [--focus REGEX] [--keep] [MODE...]
#
# A MODE is one of
#   cilium       Azure CNI powered by Cilium, overlay: network policies and sig-network's conformance
#   cilium-cidr  the same with `policy-cidr-match-mode: pods nodes`, which AKS does not set: network policies
#   azure        Azure CNI overlay, which has no engine for policies: sig-network's conformance
#   dual         the same with IPv4 and IPv6: the specs of dual stack
#   cilium-dual  Azure CNI powered by Cilium, overlay with IPv4 and IPv6: the specs of dual stack
# and without any, all run one after another. `--focus` runs other specs; `--keep` leaves the last lab up.
# Results are in target/e2e/MODE; a failure that scripts/e2e-known.txt does not explain makes the exit status 1.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
cache=${AKSNET_CACHE:-/var/cache/aksnet}
aksnet=${AKSNET:-target/release/aksnet}
export AKSNET_NAME=e2e
listen=${E2E_LISTEN:-127.0.0.1:8553}
export PATH="$PATH:$cache/go/bin"
export CGO_ENABLED=0 # agnhost runs in an image without libraries of its own
version=$(sed -n 's|^require k8s.io/kubernetes v||p' kubernetes/go.mod)
programs=$cache/e2e/v$version

policies='Netpol'
conformance='\[sig-network\].*\[Conformance\]'
dual='\[Feature:IPv6DualStack\]'
# What is not asked for, and why:
left_out=(
  SCTP # the kernel may lack it, and Azure's networks do not carry it
)

say() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

focus=
keep=
modes=()
while [ $# -gt 0 ]; do
  case $1 in
    --focus) focus=${2:?--focus needs a regular expression}; shift ;;
    --keep) keep=yes ;;
    azure | cilium | cilium-cidr | dual | cilium-dual) modes+=("$1") ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done
[ ${#modes[@]} -gt 0 ] || modes=(cilium cilium-cidr azure dual cilium-dual)
[ "$(id -u)" = 0 ] || fail "the lab makes network namespaces and needs root; run this as root"
[ -x "$aksnet" ] || fail "$aksnet is not there; \`make build\` makes it"

install_packages() {
  local wanted=(dash bash curl netcat-openbsd bind9-dnsutils iproute2 libc-bin nginx-light busybox-static jq)
  local missing=() package
  for package in "${wanted[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing Debian packages: ${missing[*]}"
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
}

# e2e.test and agnhost, from the module that Kubernetes itself is built from.
build_programs() {
  local package=k8s.io/component-base/version
  local flags="-s -w -X $package.gitVersion=v$version -X $package.gitMajor=${version%%.*}"
  flags+=" -X $package.gitMinor=$(cut -d. -f2 <<<"$version") -X $package.gitTreeState=clean"
  mkdir -p "$programs"
  if [ ! -x "$programs/agnhost" ]; then
    say "building agnhost $version"
    go -C kubernetes build -trimpath -ldflags "$flags" -o "$programs/agnhost.new" k8s.io/kubernetes/test/images/agnhost
    mv "$programs/agnhost.new" "$programs/agnhost"
  fi
  if [ ! -x "$programs/e2e.test" ]; then
    say "building e2e.test $version (some minutes)"
    go -C kubernetes test -c -trimpath -ldflags "$flags" -o "$programs/e2e.test.new" k8s.io/kubernetes/test/e2e
    mv "$programs/e2e.test.new" "$programs/e2e.test"
  fi
}

# Made anew when what they are made by or from has changed.
make_images() {
  local archive=$programs/images.tar
  if [ "$archive" -nt "$here/e2e-image.sh" ] && [ "$archive" -nt "$programs/e2e.test" ] &&
    [ "$archive" -nt "$programs/agnhost" ]; then
    return
  fi
  say "making the images that the suite asks for"
  local source
  source=$(go -C kubernetes list -f '{{.Dir}}' k8s.io/kubernetes/test/images/agnhost)
  "$here/e2e-image.sh" "$source" "$programs"
}

# A lab with a cluster of two nodes; az and kubectl speak to it afterwards.
start_cluster() {
  local arguments=(--network-plugin azure --network-plugin-mode overlay)
  case $1 in cilium*) arguments+=(--network-dataplane cilium) ;; esac
  case $1 in *dual) arguments+=(--ip-families ipv4,ipv6) ;; esac
  "$aksnet" reset --yes >/dev/null 2>&1 || true
  "$aksnet" up --listen "$listen"
  local environment
  environment=$("$aksnet" env)
  eval "$environment"
  az group create -n e2e -l eastus -o none
  az aks create -g e2e -n e2e "${arguments[@]}" --node-count 2 --no-ssh-key -o none
  az aks get-credentials -g e2e -n e2e --overwrite-existing
  "$aksnet" image import "$programs/images.tar"
  case $1 in
    cilium | cilium-dual) configure_cilium '{}' ;;
    cilium-cidr) configure_cilium '{"policy-cidr-match-mode": "pods nodes"}' ;;
  esac
}

# Changes Cilium's settings. The suite gives a pod's new labels 20 s until policies heed them; an agent waits up to 30 s
# before it looks, so Cilium's own tests switch that off for these specs (https://github.com/cilium/cilium/pull/46477).
configure_cilium() {
  local settings
  settings=$(jq -c '{data: ({"identity-max-jitter": "0s"} + .)}' <<<"$1")
  kubectl -n kube-system patch configmap cilium-config --patch "$settings"
  kubectl -n kube-system rollout restart daemonset cilium
  kubectl -n kube-system rollout status daemonset cilium --timeout 5m
}

# In the control plane's network, as there the suite reaches nodes and pods too, as it expects.
run_suite() {
  local output=$1 wanted=$2
  local network skip
  network=$(basename /run/netns/"$AKSNET_NAME"-cp-e2e-*)
  [ -e "/run/netns/$network" ] || fail "the cluster's control plane has no network namespace"
  skip=$(IFS='|'; printf '%s' "${left_out[*]}")
  sed 's|server: https://127.0.0.1:[0-9]*|server: https://127.0.0.1:443|' "$KUBECONFIG" >"$output/kubeconfig"
  nsenter --net="/run/netns/$network" "$programs/e2e.test" \
    --kubeconfig="$output/kubeconfig" --kubectl-path="$(command -v kubectl)" --provider=skeleton --num-nodes=2 \
    --ginkgo.focus="$wanted" --ginkgo.skip="$skip" --ginkgo.timeout=6h \
    --ginkgo.no-color --ginkgo.v --ginkgo.silence-skips \
    --ginkgo.json-report="$output/report.json" >"$output/e2e.log" 2>&1 || true # the report says what failed
}

# Makes of the report a table: state, seconds, spec, why.
tabulate() {
  local output=$1
  [ -s "$output/report.json" ] || fail "the suite made no report; its last words are in $output/e2e.log"
  jq -r '.[].SpecReports[] | select(.State != "skipped" or ((.Failure.Message // "") != ""))
    | [.State, (.RunTime / 1e9 | round),
       ((.ContainerHierarchyTexts // []) + [.LeafNodeText] | map(select(. != "")) | join(" ")),
       ((.Failure.Message // "") | gsub("\\s+"; " ") | .[:300]), .LeafNodeType] | @tsv' "$output/report.json" |
    awk -F'\t' '$5 == "It" || $1 != "passed"' | cut -f1-4 | sort -t$'\t' -k1,1 -k3,3 >"$output/results.tsv"
}

# Says how it went; 1 if there is a failure that is not known.
judge() {
  local mode=$1 output=$2
  local passed failed skipped unexplained=0 state seconds spec why reason
  passed=$(grep -c '^passed' "$output/results.tsv" || true)
  skipped=$(grep -c '^skipped' "$output/results.tsv" || true)
  failed=$(grep -vcE '^(passed|skipped)' "$output/results.tsv" || true)
  say "$mode: $passed passed, $failed failed, $skipped skipped themselves; $output/results.tsv has the names"
  [ $((passed + failed)) -gt 0 ] || fail "no spec ran"
  while IFS=$'\t' read -r state seconds spec why; do
    case $state in passed | skipped) continue ;; esac
    if reason=$(known "$mode" "$spec"); then
      printf '    known:  %s\n            %s\n' "$spec" "$reason"
    else
      printf '    FAILED: %s (%s after %s s)\n            %s\n' "$spec" "$state" "$seconds" "$why"
      unexplained=1
    fi
  done <"$output/results.tsv"
  return $unexplained
}

# The reason that e2e-known.txt gives for a failure of this spec.
known() {
  awk -F' \\| ' -v mode="$1" -v spec="$2" \
    '!/^#/ && $1 == mode && index(spec, $2) { print $3; found = 1; exit } END { exit !found }' "$here/e2e-known.txt"
}

install_packages
build_programs
make_images
stop() { [ -n "$keep" ] || "$aksnet" reset --yes >/dev/null; }
trap stop EXIT
worst=0
for mode in "${modes[@]}"; do
  case $mode in
    cilium) wanted="$policies|$conformance" ;;
    cilium-cidr) wanted=$policies ;;
    azure) wanted=$conformance ;;
    dual | cilium-dual) wanted=$dual ;;
  esac
  output=$PWD/target/e2e/$mode
  rm -rf "$output"
  mkdir -p "$output"
  say "$mode: starting a cluster"
  start_cluster "$mode"
  say "$mode: running the suite; $output/e2e.log grows"
  run_suite "$output" "${focus:-$wanted}"
  tabulate "$output"
  judge "$mode" "$output" || worst=1
done
exit $worst
