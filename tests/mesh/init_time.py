#!/usr/bin/env python3
"""How long outrigger-init takes beside istio-iptables, for a sidecar's usual flags, each run in a network namespace of its own, in turns:

    sudo -E ./init_time.py ../../target/release/outrigger-init [RUNS]

Needs root, iproute2, iptables of both flavours, nft, and pilot-agent on PATH or in $MESH_BIN.
"""
import os
import statistics
import subprocess
import sys
import time

SPACE = f"init-time-{os.getpid()}"
FLAGS = ["-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020"]
BACKENDS = {"iptables-nft": ["--force-iptables-binary", "nft"], "iptables-legacy": ["--force-iptables-binary", "legacy"],
            "nft": ["--native-nftables"]}


def once(command):
    """Milliseconds of one run in a new namespace, which has an address, as a pod's has."""
    inside = ["ip", "-n", SPACE]
    subprocess.run(["ip", "netns", "add", SPACE], check=True)
    try:
        for words in ("link set lo up", "link add eth0 type veth peer name far", "addr add 10.5.0.1/24 dev eth0", "link set eth0 up"):
            subprocess.run(inside + words.split(), check=True)
        began = time.perf_counter()
        done = subprocess.run(["nsenter", f"--net=/run/netns/{SPACE}"] + command, capture_output=True, text=True)
        took = time.perf_counter() - began
    finally:
        subprocess.run(["ip", "netns", "del", SPACE], check=True)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr}")
    return took * 1000


def main():
    ours, runs = [sys.argv[1]], int(sys.argv[2]) if len(sys.argv) > 2 else 30
    istios = [os.path.join(os.environ.get("MESH_BIN", ""), "pilot-agent"), "istio-iptables"]
    for name, flags in BACKENDS.items():
        times = [(once(istios + FLAGS + flags), once(ours + FLAGS + flags)) for _ in range(runs)]
        theirs, mine = (statistics.median(column) for column in zip(*times))
        least = [min(column) for column in zip(*times)]
        print(f"{name}: istio-iptables {theirs:.1f} ms, outrigger-init {mine:.1f} ms: {mine / theirs:.2f} (medians of {runs}); "
              f"fastest {least[0]:.1f} and {least[1]:.1f} ms: {least[1] / least[0]:.2f}")


main()
