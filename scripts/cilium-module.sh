#!/usr/bin/env bash
# Writes cilium/go.mod and cilium/go.sum anew, for a version of Cilium: `scripts/cilium-module.sh 1.20.2`.
# What is replaced stays as it stands there, so look at it when a version is raised: Go names what no proxy serves.
set -euo pipefail

version=${1:?which version of Cilium?}
cd "$(dirname "$0")/../cilium"
mapfile -t packages < <(sed -n 's|^\t_ "\(.*\)"$|\1|p' tools.go)
upstream=$(go mod download -json "github.com/cilium/cilium@v$version" | sed -n 's|^\t"GoMod": "\(.*\)",$|\1|p')
kept=$(sed '/^module /q' go.mod)
replaced=$(sed -n '/^replace (/,$p' go.mod)

# All that Cilium requires, so that Go chooses the same versions.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp -r mcs-api "$scratch"
mkdir "$scratch/unused"
printf 'module sigs.k8s.io/mcs-api/conformance\n\ngo 1.24\n' >"$scratch/unused/go.mod"
{
  sed -e '/^module /s/.*/module aksnet.dev\/cilium/' -e '/^replace /d' -e '/^tool (/,/^)/d' "$upstream"
  printf '\nrequire github.com/cilium/cilium v%s\n\n%s\n' "$version" "$replaced"
  # Its go.mod is asked for, and nothing in it.
  printf '\nreplace sigs.k8s.io/mcs-api/conformance => ./unused\n'
} >"$scratch/go.mod"
list=(go list -mod=mod -deps -tags osusergo,ipam_provider_operator)
modules=$(cd "$scratch" && "${list[@]}" -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}{{end}}{{end}}' "${packages[@]}" |
  sort -u | grep -v '^github.com/cilium/cilium ')

{
  printf '%s\n\n%s\n\n' "$kept" "$(grep '^go ' "$scratch/go.mod")"
  printf 'require github.com/cilium/cilium v%s\n\nrequire (\n' "$version"
  sed -e 's/^/\t/' -e 's|$| // indirect|' <<<"$modules"
  printf ')\n\n%s\n' "$replaced"
} >go.mod
: >go.sum
"${list[@]}" "${packages[@]}" >/dev/null
echo "cilium/go.mod requires $(wc -l <<<"$modules") modules beside Cilium $version"
