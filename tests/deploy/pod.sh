#!/bin/bash
# A pod without Kubernetes: pod.sh ROOT BOOTSTRAP INIT-ARGUMENTS… -- PROXY-ARGUMENTS…
#
# Two network namespaces, a client's and the pod's. In the pod, from the image's file system ROOT, read-only: first
# outrigger-init as root with NET_ADMIN and NET_RAW only, then the proxy as 1337 without capabilities; beside them an
# application. Says what the proxy may do, and what is answered in both directions.
set -euo pipefail
if [ -z "${CLIENT:-}" ]; then
  # The outer shell is the client's namespace, until the inner one has ended.
  # shellcheck disable=SC2016
  exec unshare --net bash -c 'CLIENT=$$ unshare --net --mount bash "$@"; exit $?' - "$0" "$@"
fi
root=$1 bootstrap=$2
shift 2
init=()
while [ "$1" != -- ]; do init+=("$1") && shift; done
shift

curl=(curl --silent --fail --max-time 20 --retry 30 --retry-delay 1 --retry-connrefused)
in_client() { nsenter --target "$CLIENT" --net "$@"; }

ip link set lo up
in_client ip link set lo up
ip link add eth0 type veth peer name eth0 netns "$CLIENT"
ip addr add 10.9.0.1/24 dev eth0
ip link set eth0 up
in_client ip addr add 10.9.0.2/24 dev eth0
in_client ip link set eth0 up

# What a container runtime mounts.
mkdir -p "$root/etc/outrigger"
cp "$bootstrap" "$root/etc/outrigger/bootstrap.yaml"
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
contained=(env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/bin setpriv --no-new-privs --inh-caps=-all)

# chroot is ours and needs CAP_SYS_CHROOT; a runtime would have changed the root before.
"${contained[@]}" --bounding-set=-all,+net_admin,+net_raw,+sys_chroot chroot "$root" outrigger-init "${init[@]}"
echo "init: installed"

"${contained[@]}" --bounding-set=-all,+sys_chroot,+setuid,+setgid \
  chroot --userspec=1337:1337 "$root" outrigger "$@" &
proxy=$!
files=$(mktemp -d)
echo "from the application" >"$files/hello"
python3 -m http.server 9080 --directory "$files" >/dev/null 2>&1 &
pod=$!
nsenter --target "$CLIENT" --net python3 -m http.server 8000 --directory "$files" >/dev/null 2>&1 &
client=$!
trap 'kill -KILL $proxy $pod $client 2>/dev/null || true; rm -rf "$files"' EXIT

in_client "${curl[@]}" -o "$files/ready" http://10.9.0.1:15021/ready
echo "ready: $(cat "$files/ready")"
grep -E '^(Uid|Gid|CapEff|CapPrm):' "/proc/$proxy/status" | tr '\t' ' '
in_client "${curl[@]}" -i http://10.9.0.1:9080/hello | tr -d '\r' | sed 's/^/inbound: /'
"${curl[@]}" -i http://10.9.0.2:8000/hello | tr -d '\r' | sed 's/^/outbound: /'
kill -TERM $proxy
code=0
wait $proxy || code=$?
echo "exit: $code"
