#!/usr/bin/env python3
"""A service mesh on one machine: istiod, pilot-agent and a proxy per pod, each pod in a network namespace of its own.

    sudo ./mesh.py up   --proxy PATH [--proxy POD=PATH ...] [--redirect 'COMMAND'] [--pods client-v1,details-v1,...]
                        [--family ipv4|ipv6|dual] [--interception REDIRECT|TPROXY]
    sudo ./mesh.py rotate client-v1 details-v1
    sudo ./mesh.py kill-istiod; sudo ./mesh.py start-istiod
    sudo ./mesh.py add-pod reviews-v4 10.77.0.41 --port 9080; sudo ./mesh.py remove-pod reviews-v1
    sudo ./mesh.py exec client-v1 curl -s http://reviews:9080/reviews/1
    sudo ./mesh.py down

Needs: Linux, root, iproute2, iptables, openssl, curl, python3, the binaries istiod and pilot-agent (see README.md) on
PATH or in $MESH_BIN, and a proxy that speaks Envoy's command line. Everything lives in namespaces named $MESH_NAME-* (default
mesh-*), so two meshes can stand side by side; state, logs, certificates and the copies of kube/, config/ and mesh.yaml that istiod watches are under $MESH_DIR (default ./run):
edit those copies to push a change.
"""
import argparse
import glob
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
RUN = os.environ.get("MESH_DIR", os.path.join(os.getcwd(), "run"))
BIN = os.environ.get("MESH_BIN", "")
NAME = os.environ.get("MESH_NAME", "mesh")
PROXY_UID = PROXY_GID = 1337

# name -> (last part of its addresses, port its application listens on or None, how it takes part)
#   sidecar: application, proxy and redirect rules; plain: application only; router: proxy only, as a gateway
PODS = {
    "client-v1": (10, None, "sidecar"),
    "reviews-v1": (11, 9080, "sidecar"),
    "reviews-v2": (12, 9080, "sidecar"),
    "reviews-v3": (13, 9080, "sidecar"),
    "ratings-v1": (14, 9080, "sidecar"),
    "details-v1": (15, 9080, "sidecar"),
    "mongodb-v1": (16, 27017, "sidecar"),
    "gateway-v1": (20, None, "router"),
    "legacy-v1": (30, 9080, "plain"),
}
SERVICES = {"reviews": 1, "ratings": 2, "details": 3, "mongodb": 4, "legacy": 5}
FAMILIES = {"ipv4": [4], "ipv6": [6], "dual": [4, 6]}


def pod_address(number, family):
    return f"10.77.0.{number}" if family == 4 else f"fd77::{number}"


def service_address(number, family):
    return f"10.78.0.{number}" if family == 4 else f"fd78::{number}"


def istiod_port(port, families):
    """Where istiod listens: on the address of the pods' first family."""
    return f"{pod_address(1, 4)}:{port}" if families[0] == 4 else f"[{pod_address(1, 6)}]:{port}"


def sh(command, **kw):
    return subprocess.run(command, shell=isinstance(command, str), check=True, **kw)


def tool(name):
    path = os.path.join(BIN, name) if BIN else shutil.which(name)
    if not path or not os.path.exists(path):
        sys.exit(f"mesh: {name} not found; put it on PATH or set MESH_BIN")
    return os.path.abspath(path)


def netns(pod):
    return f"{NAME}-{pod}"


def spawn(pod, command, log, env=None, cwd=None, user=None):
    """Starts command in the pod's namespaces, detached, and remembers its process id. user: (uid, capability or None)."""
    argv = ["ip", "netns", "exec", netns(pod)]
    out = open(log, "ab")
    if user:
        uid, capability = user
        argv += ["setpriv", f"--reuid={uid}", f"--regid={PROXY_GID}", "--clear-groups"]
        if capability:  # the only one, as where a container drops all and adds one
            argv += [f"--bounding-set=-all,+{capability}", f"--inh-caps=-all,+{capability}"]
        os.chown(log, uid, PROXY_GID)  # an access log to /dev/stdout opens this file again
    p = subprocess.Popen(argv + command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env, cwd=cwd, start_new_session=True)
    with open(f"{RUN}/pids", "a") as f:
        f.write(f"{p.pid} {pod} {command[0]}\n")
    return p


def wait(what, check, seconds=180):
    end = time.time() + seconds
    while time.time() < end:
        if check():
            return
        time.sleep(0.05)
    sys.exit(f"mesh: {what} not ready after {seconds} s; see {RUN}")


def answers(pod, url, want="200"):
    r = subprocess.run(["ip", "netns", "exec", netns(pod), "curl", "-s", "-o", "/dev/null", "-m", "10", "-w", "%{http_code}", url],
                       capture_output=True, text=True)
    return r.stdout == want


def ready(pod, families):
    """Whether the pod's proxy serves: without IPv4, only IPv6's loopback address tells."""
    host = "127.0.0.1" if 4 in families else "[::1]"
    return answers(pod, f"http://{host}:15021/healthz/ready")


def authority():
    os.makedirs(f"{RUN}/ca", exist_ok=True)
    sh(f"openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /O=cluster.local -keyout {RUN}/ca/key.pem -out {RUN}/ca/root-cert.pem"
       " -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign", stderr=subprocess.DEVNULL)


def certificate(folder, service_account, days=1):
    """Writes an X.509-SVID for the service account where pilot-agent looks for one; a second call rotates it."""
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/ext", "w") as f:
        f.write(f"subjectAltName=critical,URI:spiffe://cluster.local/ns/default/sa/{service_account}\n"
                "keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth,clientAuth\n")
    sh(f"openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out {folder}/key.new && "
       f"openssl req -new -key {folder}/key.new -subj / -out {folder}/csr && "
       f"openssl x509 -req -in {folder}/csr -CA {RUN}/ca/root-cert.pem -CAkey {RUN}/ca/key.pem -CAcreateserial -days {days} "
       f"-extfile {folder}/ext -out {folder}/cert.new", stderr=subprocess.DEVNULL)
    shutil.copy(f"{RUN}/ca/root-cert.pem", f"{folder}/root.new")
    # Who watches the folder reads each file as soon as it is there: by then it is whole, and of the user whose folder it is.
    owner = os.stat(folder)
    sh(f"chown -R {owner.st_uid}:{owner.st_gid} {folder}")
    for new, name in [("root", "root-cert"), ("key", "key"), ("cert", "cert-chain")]:
        os.replace(f"{folder}/{new}.new", f"{folder}/{name}.pem")


def rotate(args):
    for pod in args.pods:
        certificate(f"{RUN}/{pod}/var/run/secrets/workload-spiffe-credentials", pod.rsplit("-", 1)[0])


def network(pods, families):
    bridge = netns("istiod")
    sh(f"ip netns add {bridge}")
    sh(f"ip -n {bridge} link add br0 type bridge")
    sh(f"ip -n {bridge} link set br0 up && ip -n {bridge} link set lo up")
    addresses(bridge, "br0", 1, families)
    for pod in pods:
        namespace(pod, families)


def namespace(pod, families):
    """Makes a pod's network namespace, on the bridge in istiod's."""
    number, here, bridge = PODS[pod][0], netns(pod), netns("istiod")
    sh(f"ip netns add {here}")
    sh(f"ip -n {bridge} link add p{number} type veth peer name eth0 netns {here}")
    sh(f"ip -n {bridge} link set p{number} master br0 up")
    sh(f"ip -n {here} link set eth0 up && ip -n {here} link set lo up")
    addresses(here, "eth0", number, families)
    for family in families:
        sh(f"ip -n {here} -{family} route add default via {pod_address(1, family)}")
    sh(f"ip netns exec {here} sysctl -qw net.ipv4.ip_unprivileged_port_start=0")  # as container runtimes do
    folder = f"/etc/netns/{here}"
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/hosts", "w") as f:
        f.write("127.0.0.1 localhost\n" if 4 in families else "::1 localhost\n")
        for family in families:
            for name, number in SERVICES.items():
                f.write(f"{service_address(number, family)} {name} {name}.default {name}.default.svc.cluster.local\n")
    with open(f"{folder}/resolv.conf", "w") as f:
        f.write("nameserver 127.0.0.1\n" if 4 in families else "nameserver ::1\n")


def addresses(namespace, device, number, families):
    for family in families:
        # Nobody else has them: there is no duplicate to wait for.
        size, more = (64, "nodad") if family == 6 else (24, "")
        sh(f"ip -n {namespace} addr add {pod_address(number, family)}/{size} dev {device} {more}")


def of_families(text, families):
    """Kubernetes objects, written for IPv4, for pods and services of other families."""
    def v6(text):
        return re.sub(r"10\.(77|78)\.0\.(\d+)", r'"fd\1::\2"', text)

    def dual(match):
        return f"{match[1]}{match[2]}, {v6(match[2])}]"
    if families == [4]:
        return text
    if families == [6]:
        return v6(text).replace("addressType: IPv4", "addressType: IPv6")
    documents = []
    for document in text.split("\n---\n"):
        both = re.sub(r"(clusterIPs: \[)([^]]*)\]", dual, document)
        both = re.sub(r"(podIPs: \[)([^]]*)\]", dual, both)
        both = both.replace("  clusterIPs:", "  ipFamilyPolicy: RequireDualStack\n  ipFamilies: [IPv4, IPv6]\n  clusterIPs:")
        documents.append(both)
        if "kind: EndpointSlice" in document:
            documents.append(v6(document).replace("addressType: IPv4", "addressType: IPv6").replace("-1, namespace", "-6, namespace"))
    return "\n---\n".join(documents)


def readable(path):
    """Where a pod's user, who cannot look into our home, finds the binary."""
    folder = f"{RUN}/bin"
    os.makedirs(folder, exist_ok=True)
    copy = f"{folder}/{os.path.basename(path)}-{zlib.crc32(os.path.abspath(path).encode()):x}"
    if not os.path.exists(copy):
        shutil.copy(path, copy)
        os.chmod(copy, 0o755)
    return copy


def agent(pod, proxy, more, families, interception):
    """Starts pilot-agent, which writes the bootstrap, starts the proxy and serves it xDS and SDS over unix sockets."""
    app, version = pod.rsplit("-", 1)
    number, _, role = PODS[pod]
    transparent = interception == "TPROXY" and role == "sidecar"
    # A transparent sidecar is root with NET_ADMIN alone, as Istio's injector has it; rules know it by its group.
    user = (0, "net_admin") if transparent else (PROXY_UID, None)
    home = f"{RUN}/{pod}"
    certificate(f"{home}/var/run/secrets/workload-spiffe-credentials", app)
    os.makedirs(f"{home}/etc/istio/pod", exist_ok=True)
    with open(f"{home}/etc/istio/pod/labels", "w") as f:
        f.write(f'app="{app}"\nversion="{version}"\n')
    os.makedirs(f"{home}/var/lib/istio/envoy", exist_ok=True)
    shutil.copy(tool("envoy_bootstrap.json"), f"{home}/var/lib/istio/envoy/envoy_bootstrap_tmpl.json")
    sh(f"chown -R {user[0]}:{PROXY_GID} {home}")
    config = {
        "binaryPath": proxy,
        "configPath": f"{home}/etc/istio/proxy",
        "discoveryAddress": istiod_port(15010, families),
        "controlPlaneAuthPolicy": "NONE",
        "terminationDrainDuration": "5s",
        "concurrency": 1,
        "statusPort": 15020,
        "proxyAdminPort": 15000,
    } | more
    env = {
        "PATH": os.environ["PATH"],
        "PROXY_CONFIG": json.dumps(config),
        "POD_NAME": pod, "POD_NAMESPACE": "default", "INSTANCE_IP": pod_address(number, families[0]), "HOST_IP": pod_address(1, families[0]),
        "SERVICE_ACCOUNT": app, "TRUST_DOMAIN": "cluster.local", "ISTIO_META_CLUSTER_ID": "Kubernetes",
        "ISTIO_META_MESH_ID": "cluster.local", "ISTIO_META_WORKLOAD_NAME": pod, "ISTIO_META_INTERCEPTION_MODE": interception,
        "ISTIO_META_APP_CONTAINERS": "app",
        "CA_ADDR": istiod_port(15010, families), "PILOT_CERT_PROVIDER": "istiod", "GRPC_XDS_BOOTSTRAP": "",
        "ISTIO_BOOTSTRAP_OVERRIDE": "", "ISTIO_DUAL_STACK": str(len(families) > 1).lower(),
    } | {name: value for name, value in os.environ.items() if name.startswith("ISTIO_")}
    kind = "router" if role == "router" else "sidecar"
    spawn(pod, [tool("pilot-agent"), "proxy", kind, "--domain", "default.svc.cluster.local", "--proxyLogLevel=warning",
                "--log_output_level=default:info"], f"{home}/agent.log", env=env, cwd=home, user=user)


def start_istiod(_=None):
    """Starts istiod, with the settings that the mesh came up with, and waits until it serves."""
    settings = json.load(open(f"{RUN}/istiod.json"))
    env = dict(os.environ) | settings["environment"]
    spawn("istiod", [tool("istiod"), "-kube", f"{RUN}/kube", "-config", f"{RUN}/config", "-mesh", f"{RUN}/mesh.yaml",
                     "-grpc", settings["grpc"], "-http", "127.0.0.1:8080"], f"{RUN}/istiod.log", env=env, cwd=RUN)
    wait("istiod", lambda: answers("istiod", "http://127.0.0.1:8080/ready"))


def ended(pid):
    try:
        return len(os.listdir(f"/proc/{pid}/task")) <= 1 and ") Z " in open(f"/proc/{pid}/stat").read()
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill_istiod(_):
    """Kills istiod as a crash would, and waits until its sockets are free."""
    lines = open(f"{RUN}/pids").readlines()
    pid = next(int(line.split()[0]) for line in reversed(lines) if line.split()[1] == "istiod")
    os.kill(pid, signal.SIGKILL)
    wait("the end of istiod", lambda: ended(pid))
    with open(f"{RUN}/pids", "w") as f:  # the number may be another's by the time of `down`
        f.writelines(line for line in lines if int(line.split()[0]) != pid)


def up(args):
    down(args)  # what a run that was killed has left
    pods = args.pods.split(",") if args.pods else list(PODS)
    os.makedirs(RUN, exist_ok=True)
    default = next((readable(p) for p in args.proxy if "=" not in p), None)
    proxies = {pod: readable(path) for pod, _, path in (p.partition("=") for p in args.proxy if "=" in p)}
    families = FAMILIES[args.family]
    redirect = args.redirect or (f"{tool('pilot-agent')} istio-iptables -p 15001 -z 15006 -u 1337 -m {args.interception} -i * -x '' -b * -d 15090,15021,15020"
                                 + " --dual-stack" * (len(families) > 1))
    authority()
    network(pods, families)
    settings, mesh = {k: v for k, v in os.environ.items() if k.startswith("PILOT_")} | {"ISTIO_DUAL_STACK": str(len(families) > 1).lower()}, open(f"{HERE}/mesh.yaml").read()
    if args.stock_envoy:
        settings.update(PILOT_ENABLE_METADATA_EXCHANGE="false", PILOT_ENABLE_ALPN_FILTER="false")
        mesh = mesh.replace("metrics: [prometheus]", "metrics: []")
    for folder in ("kube", "config"):
        shutil.copytree(f"{HERE}/{folder}", f"{RUN}/{folder}", dirs_exist_ok=True)
    for path in glob.glob(f"{RUN}/kube/*.yaml"):
        text = of_families(open(path).read(), families)
        with open(path, "w") as f:
            f.write(text)
    with open(f"{RUN}/mesh.yaml", "w") as f:
        f.write(mesh)
    with open(f"{RUN}/istiod.json", "w") as f:
        json.dump({"environment": settings, "grpc": istiod_port(15010, families)}, f)
    with open(f"{RUN}/pods.json", "w") as f:
        json.dump({"proxy": default, "redirect": redirect, "proxy_config": json.loads(args.proxy_config),
                   "families": families, "interception": args.interception}, f)
    start_istiod()
    for pod in pods:
        _, port, role = PODS[pod]
        os.makedirs(f"{RUN}/{pod}", exist_ok=True)
        if port:
            spawn(pod, [sys.executable, f"{HERE}/app.py", pod, str(port)], f"{RUN}/{pod}/app.log")
        if role == "sidecar":
            sh(["ip", "netns", "exec", netns(pod)] + shlex.split(redirect), stdout=open(f"{RUN}/{pod}/redirect.log", "w"), stderr=subprocess.STDOUT)
        if role != "plain":
            agent(pod, proxies.get(pod, default), json.loads(args.proxy_config), families, args.interception)
    for pod in pods:
        if PODS[pod][2] != "plain":
            wait(pod, lambda: ready(pod, families))
    print(f"mesh: {len(pods)} pods ready; try: {sys.argv[0]} exec client-v1 curl -s http://reviews:9080/reviews/1")


def add_pod(args):
    """Starts one more pod, as the others are; what Kubernetes has to say of it is the caller's. In the order of native sidecars: the
    redirect rules, the proxy until it is ready, the application."""
    pod, like = args.pod, json.load(open(f"{RUN}/pods.json"))
    PODS[pod] = (int(args.address.rpartition(".")[2]), args.port, "sidecar")
    families = like["families"]
    home = f"{RUN}/{pod}"
    os.makedirs(home)
    namespace(pod, families)
    sh(["ip", "netns", "exec", netns(pod)] + shlex.split(like["redirect"]), stdout=open(f"{home}/redirect.log", "w"), stderr=subprocess.STDOUT)
    agent(pod, like["proxy"], like["proxy_config"], families, like["interception"])
    if not args.together:
        wait(pod, lambda: ready(pod, families))
    command = shlex.split(args.app) if args.app else [sys.executable, f"{HERE}/app.py", pod, str(args.port)]
    spawn(pod, command, f"{home}/app.log")
    if args.port:
        wait(f"{pod}'s application", lambda: answers(pod, f"http://127.0.0.1:{args.port}/"))
    wait(pod, lambda: ready(pod, families))


def remove_pod(args):
    """Ends a pod as kubelet ends one with a native sidecar: the sidecar's preStop hook (Istio's drains) beside the application's
    SIGTERM, the sidecar's SIGTERM when the application has ended, SIGKILL for whoever is left when the grace period is over."""
    end = time.time() + args.grace
    others = [line for line in open(f"{RUN}/pids") if line.split()[1] != args.pod]
    mine = [line.split() for line in open(f"{RUN}/pids") if line.split()[1] == args.pod]
    sidecar = [int(pid) for pid, _, command in mine if command.endswith("/pilot-agent")]
    application = [int(pid) for pid, _, command in mine if not command.endswith("/pilot-agent")]
    drain = ["curl", "-s", "-m", str(args.grace), "-X", "POST", "http://127.0.0.1:15020/drain"]
    hook = subprocess.Popen(["ip", "netns", "exec", netns(args.pod)] + drain, stdout=subprocess.DEVNULL)
    for pids in (application, sidecar):
        for pid in pids:
            if not ended(pid):
                os.kill(pid, signal.SIGTERM)
        if pids is application:
            hook.wait()
        while time.time() < end and not all(ended(pid) for pid in pids):
            time.sleep(0.02)
    for pid in application + sidecar:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    with open(f"{RUN}/pids", "w") as f:
        f.writelines(others)
    sh(f"ip netns del {netns(args.pod)}")
    shutil.rmtree(f"/etc/netns/{netns(args.pod)}")


def down(_):
    if os.path.exists(f"{RUN}/pids"):
        pids = [int(line.split()[0]) for line in open(f"{RUN}/pids")]
        for s in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids:
                try:
                    os.killpg(pid, s)
                except ProcessLookupError:
                    pass
            time.sleep(1 if s == signal.SIGTERM else 0)
        os.remove(f"{RUN}/pids")
    for path in glob.glob(f"/run/netns/{NAME}-*") + glob.glob(f"/etc/netns/{NAME}-*"):
        if path.startswith("/etc"):
            shutil.rmtree(path)
        else:
            subprocess.run(["ip", "netns", "del", os.path.basename(path)], check=False)


def execute(args):
    os.execvp("ip", ["ip", "netns", "exec", netns(args.pod)] + args.command)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(required=True)
    u = sub.add_parser("up")
    u.add_argument("--proxy", required=True, action="append", help="path of the proxy binary; POD=PATH for one pod")
    u.add_argument("--redirect", help="command that installs the redirect rules in a pod's namespace (default: Istio's own, of the same interception and families)")
    u.add_argument("--family", choices=list(FAMILIES), default="ipv4", help="addresses of pods and services: 10.77.0.N and 10.78.0.N, fd77::N and fd78::N, or both (dual: IPv4 first)")
    u.add_argument("--interception", choices=["REDIRECT", "TPROXY"], default="REDIRECT", help="how traffic comes to the proxies; with TPROXY sidecars run as root with the group 1337 and the capability NET_ADMIN")
    u.add_argument("--pods", help="comma-separated subset")
    u.add_argument("--stock-envoy", action="store_true", help="switch off what only Istio's own Envoy build has (metadata exchange, ALPN override, istio.stats), so that any Envoy can take part")
    u.add_argument("--proxy-config", default="{}", help="more of Istio's ProxyConfig for every proxy, as JSON")
    u.set_defaults(run=up)
    d = sub.add_parser("down")
    d.set_defaults(run=down)
    r = sub.add_parser("rotate", help="new certificates for pods")
    r.add_argument("pods", nargs="+")
    r.set_defaults(run=rotate)
    sub.add_parser("kill-istiod", help="as a crash would").set_defaults(run=kill_istiod)
    sub.add_parser("start-istiod", help="after kill-istiod").set_defaults(run=start_istiod)
    a = sub.add_parser("add-pod", help="one more pod with a sidecar")
    a.add_argument("pod", help="SERVICE_ACCOUNT-VERSION")
    a.add_argument("address", help="10.77.0.N; in IPv6 it is fd77::N")
    a.add_argument("--port", type=int, help="of its application; without one, it may do what it likes")
    a.add_argument("--app", help="command of the application; app.py by default")
    a.add_argument("--together", action="store_true", help="start the application with the proxy, not after it")
    a.set_defaults(run=add_pod)
    x = sub.add_parser("remove-pod", help="end a pod as kubelet does")
    x.add_argument("pod")
    x.add_argument("--grace", type=float, default=300, help="terminationGracePeriodSeconds")
    x.set_defaults(run=remove_pod)
    e = sub.add_parser("exec")
    e.add_argument("pod")
    e.add_argument("command", nargs=argparse.REMAINDER)
    e.set_defaults(run=execute)
    args = p.parse_args()
    args.run(args)


main()
