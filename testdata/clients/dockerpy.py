#!/usr/bin/python3
"""What a program on docker-py does, each step one line or a few of output.

dockerpy.py REGISTRY    with DOCKER_HOST set. REGISTRY/busybox can be pulled.
"""
import io
import sys
import tarfile
import threading
import time

import docker
import requests
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound

image = sys.argv[1] + "/busybox:latest"
client = docker.from_env(timeout=60)
api = client.api


def say(what, *values):
    print(what + ":", *values, flush=True)


def refused(what, call, *args, **kwargs):
    """The class and the words of the error that the call must end with."""
    try:
        say(what, "NOT REFUSED", call(*args, **kwargs))
    except ContainerError as e:
        say(what, type(e).__name__, e.exit_status, e.stderr)
    except APIError as e:
        say(what, type(e).__name__, e.status_code, e.explanation)


def names(things):
    return sorted(t.name for t in things)


def until(what, condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    say(what, "never came true")


def system():
    say("ping", client.ping())
    version = client.version()
    say("version", version["ApiVersion"], version["MinAPIVersion"], version["Version"], version["Os"], version["Arch"])
    say("version keys", *sorted(version))
    info = client.info()
    say("info", info["OSType"], info["ServerVersion"], info["Swarm"]["LocalNodeState"], info["IndexServerAddress"])
    usage = client.df()
    say("df", *sorted(usage))


def containers():
    # The image is nowhere yet: create answers 404, docker-py pulls and tries again.
    say("run, image missing", client.containers.run(image, ["echo", "pulled"], remove=True))
    say("images", sorted(t for i in client.images.list() for t in i.tags if "/" in t))
    refused("run that fails", client.containers.run, image, ["sh", "-c", "echo bad >&2; exit 3"], remove=True)
    c = client.containers.run(
        image, ["sh", "-c", "echo out; echo err >&2; echo $COLOUR; exec sleep 1000"], name="py", detach=True,
        environment={"COLOUR": "blue"}, labels={"app": "demo"}, hostname="box", mem_limit="64m", nano_cpus=200000000,
        ports={"80/tcp": None}, stop_signal="SIGKILL", restart_policy={"Name": "on-failure", "MaximumRetryCount": 2})
    say("status", c.status, c.name, c.labels.get("app"), sorted(c.image.tags))
    until("logs", lambda: c.logs().count(b"\n") == 3)
    say("logs", c.logs(stderr=False), c.logs(stdout=False), len(c.logs(tail=1).splitlines()))
    say("logs stream", [line for line in c.logs(stream=True, follow=False, stderr=False)])
    say("exec", c.exec_run(["sh", "-c", "echo hi $0; exit 5"]))
    say("exec demux", c.exec_run(["sh", "-c", "echo hi; echo oops >&2"], demux=True, environment={"A": "b"}, workdir="/tmp"))
    say("exec stream", b"".join(c.exec_run(["seq", "3"], stream=True).output))
    say("exec detached", c.exec_run("touch /tmp/seen", detach=True).output)
    sock = c.exec_run(["cat"], stdin=True, socket=True, tty=True).output
    sock._sock.sendall(b"typed\n")
    data = b""
    while len(data) < 7:
        data += sock._sock.recv(7 - len(data)) or b"THE END"
    say("exec socket", data)
    sock.close()
    exec_id = api.exec_create(c.id, ["true"])["Id"]
    api.exec_start(exec_id)
    say("exec inspect", {k: v for k, v in api.exec_inspect(exec_id).items() if k in ("Running", "ExitCode")})
    say("top", c.top()["Titles"], [p[-1] for p in c.top()["Processes"]])
    stats = c.stats(stream=False)
    say("stats", stats["name"], stats["memory_stats"]["limit"], stats["pids_stats"]["current"] >= 1)
    until("diff", lambda: c.diff())
    say("diff", sorted((d["Kind"], d["Path"]) for d in c.diff()))
    c.reload()
    say("port", sorted(c.ports), len(c.ports["80/tcp"]) >= 1)
    inspected = api.inspect_container("py")
    say("inspect keys", *sorted(k for k in inspected if k != "Node"))
    say("inspect", inspected["Config"]["Hostname"], inspected["HostConfig"]["Memory"], inspected["HostConfig"]["NanoCpus"],
        inspected["HostConfig"]["RestartPolicy"], inspected["State"]["Status"], inspected["Config"]["Labels"].get("app"))
    archive(c)
    say("update", c.update(mem_limit="96m", memswap_limit="96m")["Warnings"])
    c.pause()
    c.reload()
    say("pause", c.status)
    c.unpause()
    c.rename("renamed")
    say("rename", [x.name for x in client.containers.list(filters={"name": "^/renamed$"})])
    say("list", [(x.name, x.status) for x in client.containers.list(all=True, filters={"label": "app=demo", "status": ["running"]})])
    c.restart(timeout=0)
    c.stop(timeout=1)
    say("wait", c.wait())
    say("commit", c.commit(repository="made", tag="here").tags)
    say("run what was committed", client.containers.run("made:here", ["ls", "/tmp/seen"], remove=True))
    say("prune", len(client.containers.prune(filters={"label": "app=demo"})["ContainersDeleted"]))
    refused("get what was pruned", client.containers.get, "renamed")
    client.containers.create(image, name="renamed").remove()
    attach()


def archive(c):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        entry = tarfile.TarInfo("note.txt")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"hello"))
    say("put_archive", c.put_archive("/tmp", data.getvalue()))
    chunks, stat = c.get_archive("/tmp/note.txt")
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        say("get_archive", stat["name"], stat["size"], oct(stat["mode"]), tar.extractfile("note.txt").read())
    refused("get_archive of nothing", c.get_archive, "/nothing")
    refused("put_archive to nowhere", c.put_archive, "/nowhere", data.getvalue())
    chunks = c.export()
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        say("export", "tmp/note.txt" in tar.getnames())


def attach():
    c = client.containers.create(image, ["sh", "-c", "read line; echo got $line"], stdin_open=True)
    sock = c.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    c.start()
    sock._sock.sendall(b"something\n")
    # Eight bytes of header before the text.
    data = b""
    while len(data) < 22:
        data += sock._sock.recv(100)
    sock.close()
    say("attach", data)
    say("wait", c.wait()["StatusCode"])
    c.remove(v=True)


def events():
    seen = []
    stream = client.events(decode=True, filters={"type": ["container"], "label": ["watched=yes"], "event": ["create", "start", "die", "destroy", "rename"]})

    def follow():
        for e in stream:
            seen.append((e["Type"], e["Action"], e["status"], e["from"], e["Actor"]["Attributes"].get("name"), e["Actor"]["Attributes"].get("exitCode")))
            if e["Action"] == "destroy":
                return

    thread = threading.Thread(target=follow)
    thread.start()
    client.containers.run(image, ["true"], name="unseen", remove=True)
    c = client.containers.create(image, ["sh", "-c", "exit 7"], name="seen", labels={"watched": "yes"})
    c.start()
    c.wait()
    c.rename("seen2")
    c.remove()
    thread.join(30)
    say("events", *seen)
    past = client.events(decode=True, since=int(time.time()) - 60, until=int(time.time()) + 1, filters={"container": "unseen", "event": "die"})
    say("events of the past", [(e["Action"], e["Actor"]["Attributes"]["name"]) for e in past])


def images():
    pulled = client.images.get(image)
    say("image", sorted(pulled.tags), pulled.attrs["Os"], pulled.attrs["RootFS"]["Type"], len(pulled.history()))
    progress = list(api.pull(image.rsplit(":", 1)[0], tag="latest", stream=True, decode=True))
    say("pull", progress[-1]["status"])
    say("tag", pulled.tag("other", "one"), pulled.tag("other", "two"))
    say("list by name", sorted(t for i in client.images.list("other") for t in i.tags if t.startswith("other")))
    say("list by reference", sorted(t for i in client.images.list(filters={"reference": "other:t*"}) for t in i.tags if t.startswith("other")))
    saved = b"".join(client.images.get("other:one").save(named="other:one"))
    client.images.remove("other:one")
    client.images.remove("other:two")
    refused("image that was removed", client.images.get, "other:one")
    say("load", sorted(t for i in client.images.load(saved) for t in i.tags if t.startswith("other")))
    say("import", "status" in api.import_image_from_data(client_tar(), repository="imported", tag="x"))
    say("imported", client.images.get("imported:x").tags)
    built, log = client.images.build(fileobj=io.BytesIO(b"FROM %s\nLABEL made=here\nRUN echo built >/built\n" % image.encode()), tag="built:x", rm=True)
    say("build", built.tags, built.labels, any("Successfully built" in e.get("stream", "") for e in log))
    say("run what was built", client.containers.run("built:x", ["cat", "/built"], remove=True))
    refused("build that fails", client.images.build, fileobj=io.BytesIO(b"FROM nonsense nonsense\n"))
    pushed = list(client.images.push(sys.argv[1] + "/none", stream=True, decode=True))
    say("push of nothing", pushed[-1].get("error"))
    built.tag(sys.argv[1] + "/pushed", "x")
    pushed = list(client.images.push(sys.argv[1] + "/pushed", tag="x", stream=True, decode=True))
    say("push", [p["error"] for p in pushed if "error" in p], any("aux" in p for p in pushed))
    say("distribution", client.images.get_registry_data(image).attrs["Platforms"] != [])
    for name in "imported:x", "built:x", "other:one", "made:here", sys.argv[1] + "/pushed:x":
        client.images.remove(name)
    say("prune", sorted(client.images.prune(filters={"dangling": True})))
    say("left", sorted(t for i in client.images.list() for t in i.tags))


def client_tar():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    return data.getvalue()


def networks_and_volumes():
    net = client.networks.create("pynet", driver="bridge", labels={"app": "demo"}, check_duplicate=True,
                                 ipam=docker.types.IPAMConfig(pool_configs=[docker.types.IPAMPool(subnet="10.77.2.0/24")]))
    vol = client.volumes.create("pyvol", labels={"app": "demo"})
    say("create", net.name, net.attrs["Driver"], net.attrs["Scope"], net.attrs["IPAM"]["Config"], vol.name, vol.attrs["Labels"].get("app"), vol.attrs["Driver"])
    server = client.containers.run(image, ["sh", "-c", "echo page >/data/index.html; exec httpd -f -h /data"], name="server",
                                   detach=True, network="pynet", volumes={"pyvol": {"bind": "/data", "mode": "rw"}}, stop_signal="SIGKILL")
    other = client.containers.run(image, ["sleep", "1000"], name="other", detach=True, stop_signal="SIGKILL",
                                  volumes_from=["server"])
    net.connect(other, aliases=["friend"], ipv4_address="10.77.2.50")
    until("server", lambda: other.exec_run(["wget", "-qO-", "http://server/"]).exit_code == 0)
    say("by name", other.exec_run(["wget", "-qO-", "http://server/"]).output)
    say("by volume", other.exec_run(["cat", "/data/index.html"]).output)
    net.reload()
    say("inspect", names(net.containers), sorted(e["IPv4Address"] for e in net.attrs["Containers"].values()))
    other.reload()
    say("endpoints", sorted(other.attrs["NetworkSettings"]["Networks"]), other.attrs["NetworkSettings"]["Networks"]["pynet"]["Aliases"][0])
    say("networks", names(client.networks.list(filters={"label": "app=demo"})), names(client.networks.list(names=["pynet"])),
        names(client.networks.list(filters={"type": "builtin"})))
    say("volumes", names(client.volumes.list(filters={"label": "app=demo"})), names(client.volumes.list(filters={"dangling": "true"})))
    refused("network in use", net.remove)
    refused("volume in use", vol.remove)
    refused("network twice", client.networks.create, "pynet", check_duplicate=True)
    say("volume twice", client.volumes.create("pyvol").attrs["Labels"])
    net.disconnect(other)
    other.reload()
    say("disconnected", sorted(other.attrs["NetworkSettings"]["Networks"]))
    for c in server, other:
        c.remove(force=True, v=True)
    client.networks.create("unused", labels={"app": "prune"})
    client.volumes.create("unused")
    say("networks prune", client.networks.prune(filters={"label": "app=prune"}))
    say("volumes prune", client.volumes.prune(filters={"label!": "app=demo"})["VolumesDeleted"])
    net.remove()
    vol.remove(force=True)
    say("left", names(client.networks.list()), names(client.volumes.list()))


def errors():
    refused("container", client.containers.get, "nosuch")
    refused("image", client.images.get, "nosuch")
    refused("network", client.networks.get, "nosuch")
    refused("volume", client.volumes.get, "nosuch")
    refused("image of nowhere", client.containers.run, sys.argv[1] + "/nosuch", ["true"])
    c = client.containers.create(image, ["sleep", "1000"], name="taken", stop_signal="SIGKILL")
    refused("name taken", client.containers.create, image, name="taken")
    refused("exec while it does not run", c.exec_run, ["true"])
    refused("start of nothing", client.containers.create(image, ["/nosuch"], name="nocommand").start)
    refused("pause while it does not run", c.pause)
    refused("unknown network", client.containers.create(image, name="nonet", network="nosuch").start)
    c.start()
    refused("rm while it runs", c.remove)
    refused("rename to a taken name", c.rename, "nonet")
    refused("image in use", client.images.remove, c.image.id)
    refused("bad reference", client.containers.create, "UPPER/case")
    refused("bad filter", client.containers.list, filters={"nosuch": "x"})
    refused("bad event filter", lambda: list(client.events(since=1, until=2, filters={"nosuch": "x"})))
    refused("bad memory", client.containers.create, image, mem_limit="1k")
    refused("bad signal", c.kill, "SIGNOSUCH")
    refused("no swarm", client.services.list)
    refused("no swarm", client.secrets.list)
    refused("no plugin", client.plugins.get, "nosuch")
    answer = requests.get(api.base_url + "/v1.41/nosuch")
    say("no such path", answer.status_code, answer.json())
    for name in "taken", "nocommand", "nonet":
        client.containers.get(name).remove(force=True)


for part in system, containers, events, networks_and_volumes, images, errors:
    print("---", part.__name__, flush=True)
    try:
        part()
    except Exception as e:  # the other parts still tell something
        say("ENDED EARLY", type(e).__name__, e)
say("containers left", names(client.containers.list(all=True)))
