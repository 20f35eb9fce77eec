"""Runs the pods of a rendered Helm chart in a Docker Engine, as a kubelet would: same user, environment, files, names, volumes.

usage: pods.py start RENDERED DIRECTORY        every pod; prints `IP NAME...` of each, as in /etc/hosts
       pods.py prestop RENDERED POD            what happens before the pod is told to stop; prints its seconds of grace
       pods.py probe RENDERED POD PROBE        startup, liveness or readiness: exits 0 when it succeeds

The network `pods` is there already. Names are those that a headless service gives its pods. What the chart says and this does not
know ends it: nothing is passed over in silence.
"""

import base64
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml

NETWORK = "pods"
DOMAIN = "mq.svc.cluster.local"


def docker(*arguments):
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def load(path):
    documents = [d for d in yaml.safe_load_all(Path(path).read_text()) if d]
    return {kind: {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}
            for kind in {d["kind"] for d in documents}}


def pods(objects):
    """The pods that a StatefulSet makes: name, ordinal, the set."""
    for stateful in objects["StatefulSet"].values():
        first = stateful["spec"].get("ordinals", {}).get("start", 0)
        for ordinal in range(first, first + stateful["spec"]["replicas"]):
            yield f"{stateful['metadata']['name']}-{ordinal}", ordinal, stateful


def labels(ordinal, stateful):
    return {**stateful["spec"]["template"]["metadata"]["labels"], "apps.kubernetes.io/pod-index": str(ordinal)}


def value(entry, known, objects, name, own):
    if "value" in entry:
        return re.sub(r"\$\((\w+)\)", lambda match: known[match[1]], entry["value"])
    (kind, source), = entry["valueFrom"].items()
    if kind == "secretKeyRef":
        return base64.b64decode(objects["Secret"][source["name"]]["data"][source["key"]]).decode()
    if kind == "fieldRef" and source["fieldPath"] == "metadata.name":
        return name
    label = re.fullmatch(r"metadata\.labels\['(.*)'\]", source.get("fieldPath", ""))
    return own[label[1]]


def mounts(container, spec, objects, name, directory):
    for mount in container["volumeMounts"]:
        volume = next((v for v in spec.get("volumes", []) if v["name"] == mount["name"]), None)
        if volume is None:  # of volumeClaimTemplates
            yield f"{name}-{mount['name']}:{mount['mountPath']}"
            continue
        files = Path(directory, name, mount["name"])
        files.mkdir(parents=True)
        for file, text in objects["ConfigMap"][volume["configMap"]["name"]]["data"].items():
            (files / file).write_text(text)
        yield f"{files}:{mount['mountPath']}:ro"


def start(objects, directory):
    for number, (name, ordinal, stateful) in enumerate(pods(objects)):
        spec, own = stateful["spec"]["template"]["spec"], labels(ordinal, stateful)
        container, = spec["containers"]
        security, pod = container["securityContext"], spec["securityContext"]
        assert pod["runAsNonRoot"] and security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        names = [f"{name}.{stateful['spec']['serviceName']}.{DOMAIN}"]
        names += [f"{service}.{DOMAIN}" for service, s in objects["Service"].items()
                  if s["spec"].get("clusterIP") != "None" and s["spec"]["selector"].items() <= own.items()]
        ip = f"10.99.0.{10 + number}"
        arguments = ["run", "--detach", "--name", name, "--hostname", name, "--network", NETWORK, "--ip", ip, "--read-only",
                     "--user", f"{pod['runAsUser']}:{pod['runAsGroup']}", "--security-opt", "no-new-privileges:true"]
        arguments += [f"--network-alias={alias}" for alias in names]
        arguments += [f"--cap-drop={capability}" for capability in security["capabilities"]["drop"]]
        known = {}
        for entry in container["env"]:
            known[entry["name"]] = value(entry, known, objects, name, own)
        for item in known.items():
            arguments += ["--env", "=".join(item)]
        for mount in mounts(container, spec, objects, name, directory):
            arguments += ["--volume", mount]
        docker(*arguments, container["image"], *container["command"])
        print(ip, *names)


def find(objects, name):
    stateful = next(s for pod, _, s in pods(objects) if pod == name)
    spec = stateful["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


def prestop(objects, name):
    spec, container = find(objects, name)
    (hook, how), = container["lifecycle"]["preStop"].items()
    assert hook == "sleep", hook
    time.sleep(how["seconds"])
    print(spec["terminationGracePeriodSeconds"] - how["seconds"])


def probe(objects, name, kind):
    _, container = find(objects, name)
    asked = container[f"{kind}Probe"]["httpGet"]
    port = next(p["containerPort"] for p in container["ports"] if p["name"] == asked["port"])
    ip = json.loads(docker("inspect", name))[0]["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
    try:
        urllib.request.urlopen(f"http://{ip}:{port}{asked['path']}", timeout=2).read()
    except OSError:
        return 1
    return 0


def main():
    what, rendered, *rest = sys.argv[1:]
    return {"start": start, "prestop": prestop, "probe": probe}[what](load(rendered), *rest)


if __name__ == "__main__":
    sys.exit(main())
