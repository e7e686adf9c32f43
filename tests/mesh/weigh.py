#!/usr/bin/env python3
"""What the proxies of the sample mesh cost, with one proxy everywhere and with another everywhere, side by side.

    sudo ./weigh.py envoy=PATH outrigger=PATH [--rounds 5] [--seconds 4] [--connections 32] [--json FILE]

Both meshes stand at the same time. First the memory of all proxies at rest, after one request through each pod: RSS, and
PSS, which counts a page that several processes share once. Then CPU time per request of the two proxies on the way from
client-v1 to details-v1 (wrk; mutual TLS between them), in turns, so that a noisy machine disturbs both
alike. Ratios are those of the last proxy named to the first. Needs what mesh.py needs (which see for $MESH_BIN and
$MESH_DIR), and wrk.
"""
import argparse
import glob
import json
import os
import re
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
RUN = os.path.abspath(os.environ.get("MESH_DIR", "run"))
PODS = ["client-v1", "reviews-v1", "reviews-v2", "reviews-v3", "ratings-v1", "details-v1", "mongodb-v1", "gateway-v1"]
PAIR = ["client-v1", "details-v1"]
URL = "http://details:9080/details/1"
VISITS = [
    *[("client-v1", "http://reviews:9080/reviews/1")] * 30,
    *[("client-v1", "http://reviews:9080/reviews/1", "-H", "end-user: jason")] * 2,
    *[("client-v1", "http://ratings:9080/ratings/1")] * 2,
    *[("client-v1", URL)] * 2,
    *[("client-v1", "http://mongodb:27017", "--http0.9")] * 2,
    *[("legacy-v1", "http://10.77.0.20/reviews/2", "-H", "host: bookinfo.example.com")] * 2,
]


class Mesh:
    def __init__(self, name, path):
        self.name = name
        self.path = os.path.abspath(path)
        self.env = {**os.environ, "MESH_NAME": f"weigh-{name}", "MESH_DIR": f"{RUN}/{name}"}
        self.pids = {}

    def up(self):
        self.run("up", "--stock-envoy", "--proxy", self.path)
        self.pids = {pod: self.proxy(pod) for pod in PODS}

    def run(self, *command, **kw):
        return subprocess.run([f"{HERE}/mesh.py", *command], check=kw.pop("check", True), env=self.env, text=True, **kw)

    def proxy(self, pod):
        """The process id of the pod's proxy: the program that mesh.py has put into bin."""
        pids = subprocess.run(["ip", "netns", "pids", f"weigh-{self.name}-{pod}"], check=True, capture_output=True, text=True)
        for pid in pids.stdout.split():
            if os.readlink(f"/proc/{pid}/exe").startswith(f"{self.env['MESH_DIR']}/bin/"):
                return pid
        sys.exit(f"weigh: no proxy in {pod}")

    def memory(self, field):
        """MiB of all proxies together."""
        total = 0
        for pid in self.pids.values():
            with open(f"/proc/{pid}/smaps_rollup") as f:
                total += int(re.search(rf"^{field}:\s+(\d+) kB", f.read(), re.M)[1])
        return total / 1024

    def cpu(self):
        """Seconds of CPU that the pair has used."""
        total = 0
        for pod in PAIR:
            for path in glob.glob(f"/proc/{self.pids[pod]}/task/*/schedstat"):
                with open(path) as f:
                    total += int(f.read().split()[0])
        return total / 1e9

    def load(self, seconds, connections):
        """Microseconds of CPU for each request, and requests per second."""
        before = self.cpu()
        wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", URL]
        out = self.run("exec", "client-v1", *wrk, capture_output=True).stdout
        requests = int(re.search(r"(\d+) requests in", out)[1])
        if "Non-2xx" in out or not requests:
            sys.exit(f"weigh: {self.name}: {out}")
        return (self.cpu() - before) / requests * 1e6, requests / seconds

    def visit(self):
        """Some requests through every proxy, so that none is weighed before it has worked."""
        for pod, url, *more in VISITS:
            self.run("exec", pod, "curl", "-s", "-m", "2", "-o", "/dev/null", url, *more, check=False)


def weigh_memory(meshes, figures):
    for mesh in meshes:
        mesh.visit()
    time.sleep(15)  # what starting needs is over
    for mesh in meshes:
        mesh.visit()
    time.sleep(2)
    for mesh in meshes:
        for field in ("Rss", "Pss"):
            figures.setdefault(f"{field.upper()}, MiB", {})[mesh.name] = mesh.memory(field)
        figures.setdefault("RSS of each, MiB", {})[mesh.name] = mesh.memory("Rss") / len(PODS)


def weigh_cpu(meshes, figures, rounds, seconds, connections):
    samples = {mesh.name: [] for mesh in meshes}
    for mesh in meshes:
        mesh.load(1, connections)
    for n in range(rounds):
        for mesh in meshes[n % len(meshes):] + meshes[:n % len(meshes)]:
            samples[mesh.name].append(mesh.load(seconds, connections))
    for i, what in enumerate(("CPU of the pair, us per request", "requests per second")):
        figures[what] = {name: statistics.median(s[i] for s in taken) for name, taken in samples.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("proxies", nargs="+", metavar="NAME=PATH")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=int, default=4, help="of load in each turn")
    p.add_argument("--connections", type=int, default=32, help="of the load")
    p.add_argument("--json", help="where the figures go besides")
    args = p.parse_args()
    meshes, figures = [], {}
    try:
        for proxy in args.proxies:
            meshes.append(Mesh(*proxy.split("=", 1)))
            meshes[-1].up()
        weigh_memory(meshes, figures)
        weigh_cpu(meshes, figures, args.rounds, args.seconds, args.connections)
        for mesh in meshes:
            figures.setdefault("RSS after load, MiB", {})[mesh.name] = mesh.memory("Rss")
    finally:
        for mesh in meshes:
            mesh.run("down")
    names = [mesh.name for mesh in meshes]
    print(f"{'':34}" + "".join(f"{name:>12}" for name in names) + f"{'ratio':>12}")
    for what, of in figures.items():
        print(f"{what:34}" + "".join(f"{of[name]:12.1f}" for name in names) + f"{of[names[-1]] / of[names[0]]:12.3f}")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(figures, f, indent=1)


main()
