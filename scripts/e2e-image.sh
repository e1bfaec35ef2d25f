#!/usr/bin/env bash
# Makes the images that Kubernetes' end-to-end suite asks for, from agnhost and this machine's own programs:
# `scripts/e2e-image.sh AGNHOST_SOURCE FOLDER`, where FOLDER has agnhost and e2e.test, and gets images.tar.
# One file system serves all; the images differ in what they start. busybox's shell would prefer its own applets.
set -euo pipefail

source=$1
folder=$2
work=$(mktemp -d "$folder/image.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root"/{etc/nginx,tmp,uploads,root,var/{log,lib}/nginx,run}
for name in bin sbin lib lib64; do ln -s usr/$name "$root/$name"; done
chmod 1777 "$root/tmp"

# A program at the path that it has here, and the libraries that it is linked with.
take() {
  local path
  path=$(command -v "$1")
  cp -L "$path" "$root$path"
  { ldd "$path" || true; } 2>/dev/null | sed -n 's|^[^/]*\(/[^ ]*\).*|\1|p' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    [ -e "$root$library" ] || cp -L "$library" "$root$library"
  done
}
for program in busybox dash bash curl nc.openbsd dig getent ip ss nginx; do take $program; done
ln -s dash "$root/usr/bin/sh"
ln -s nc.openbsd "$root/usr/bin/nc"
for applet in $(busybox --list); do
  [ -e "$root/usr/bin/$applet" ] || [ -e "$root/usr/sbin/$applet" ] ||
    ln -s "$(realpath -m --relative-to=/usr/bin "$(readlink -f "$(command -v busybox)")")" "$root/usr/bin/$applet"
done
cp "$folder/agnhost" "$root/agnhost"
ln -s agnhost "$root/agnhost-2"
cp "$source"/porter/localhost.{crt,key} "$root"

printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
cat >"$root/etc/nginx/nginx.conf" <<'CONFIG'
daemon off;
error_log /dev/stderr;
events {}
http {
  access_log /dev/stdout;
  server {
    listen 80;
    location / { return 200 "nginx\n"; }
  }
}
CONFIG

tar --create --file "$work/layer.tar" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$root" .
layer=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)

# An image of that file system: its name in the archive, what it starts, and the names that e2e.test has for it.
image() {
  local name=$1 config=$2 names=$3
  jq -n --argjson config "$config" --arg layer "sha256:$layer" --arg architecture "$(dpkg --print-architecture)" \
    '{architecture: $architecture, os: "linux", rootfs: {type: "layers", diff_ids: [$layer]},
      config: ({Env: ["PATH=/usr/sbin:/usr/bin"], WorkingDir: "/"} + $config)}' >"$work/$name.json"
  jq -Rn --arg config "$name.json" '{Config: $config, Layers: ["layer.tar"], RepoTags: [inputs]}' <<<"$names"
}
"$folder/e2e.test" --list-images >"$work/names" 2>/dev/null
named() { grep -E "^(docker\.io/library|registry\.k8s\.io(/e2e-test-images)?)/($1):" "$work/names"; }
{
  image agnhost '{"Entrypoint": ["/agnhost"], "Cmd": ["pause"]}' "$(named 'agnhost|glibc-dns-testing')"
  image busybox '{"Cmd": ["sh"]}' "$(named busybox)"
  image nginx '{"Cmd": ["nginx"]}' "$(named nginx)"
  image pause '{"Entrypoint": ["/agnhost", "pause"]}' "$(named pause)"
} | jq -s . >"$work/manifest.json"
tar --create --file "$work/images.tar" -C "$work" \
  manifest.json layer.tar {agnhost,busybox,nginx,pause}.json
mv "$work/images.tar" "$folder/images.tar"
