"""What every peer has in common: processes that are always stopped, their CPU and memory, and how loads are run."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
TARGET = ROOT / "target" / "peers"
KARMAN = Path(os.environ.get("KARMAN", ROOT / "target" / "release" / "karman")).absolute()
CLASSES = ("page cache", "disk")
# Far from every default, and nothing of this machine needs to be stopped for a run.
PORT = 27100


class Failed(Exception):
    """What could not be installed, started or measured, in words."""


def run(command, log, timeout=600, **options):
    """Runs to the end, everything said kept in the raw log; returns stdout."""
    command = [str(part) for part in command]
    with open(log, "a") as file:
        file.write("$ " + " ".join(part if len(part) < 400 else part[:60] + "..." for part in command) + "\n")
        file.flush()
        try:
            done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=file, timeout=timeout, **options)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failed(f"{Path(command[0]).name}: {error}") from None
        file.write(done.stdout)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)[:120]} ended with {done.returncode}; see {log}")
    return done.stdout


def copy_jars(name, *coordinates):
    """Jars and what they need into target/peers/NAME, by Maven coordinates; once."""
    jars = TARGET / name
    stamp = jars / ".complete"
    if not stamp.exists():
        jars.mkdir(parents=True, exist_ok=True)
        each = "".join(
            "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(*c.split(":"))
            for c in coordinates
        )
        pom = jars / "pom.xml"
        pom.write_text(
            "<project><modelVersion>4.0.0</modelVersion><groupId>peers</groupId><artifactId>peers</artifactId>"
            f"<version>1</version><dependencies>{each}</dependencies></project>"
        )
        command = ["mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
        run(command, TARGET / "install.log")
        stamp.touch()
    return f"{jars}/*"


def go_load():
    """Builds the Go load program; modules as its go.sum pins them."""
    binary = TARGET / "bin" / "load"
    run(["go", "build", "-o", binary, "."], TARGET / "install.log", cwd=HERE / "load")
    return binary


def debian(package, program):
    """Installs a Debian package unless its program is there; its service is not started (run level 1)."""
    if not shutil.which(program):
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", package]
        run(command, TARGET / "install.log", env={**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"})
    asked = ["dpkg-query", "-W", "-f", "${Version}", package]
    return run(asked, TARGET / "install.log").strip()


class Peer:
    """One system. A subclass says how it is installed, started, and loaded; None stands for what its tools cannot do."""

    name = ""
    classes = {}  # class of durability -> how this peer calls it
    warm_seconds = 0  # of load before the first figure; JVMs need it

    def __init__(self):
        self.servers = []

    # What a peer overrides.
    def install(self):
        """Installs; returns the version."""

    def start(self, durability):
        """Starts servers in self.dir."""

    def once(self):
        """One send; raises Failed while it is not accepted."""

    def produce(self, seconds):
        """4 connections × 64 sends under way."""

    def batch(self, seconds):
        return None

    def latency(self, seconds):
        return None

    def consume(self, seconds):
        return None

    # What all share.
    def begin(self, durability, directory, raw):
        """Starts on an empty directory; returns milliseconds until the first send was accepted."""
        self.dir, self.raw = directory, raw
        directory.mkdir(parents=True)
        begun = time.monotonic()
        self.start(durability)
        while True:
            try:
                self.once()
                return (time.monotonic() - begun) * 1000
            except Failed as error:
                if time.monotonic() - begun > 90:
                    raise Failed(f"{self.name} accepted no send within 90 s: {error}") from None
                if any(server.poll() is not None for server in self.servers):
                    raise Failed(f"{self.name}: a server ended by itself; see {self.raw}") from None
            time.sleep(0.05)

    def spawn(self, command, **environment):
        """A server in a session of its own, so that all it starts can be counted and stopped."""
        command = [str(part) for part in command]
        with open(self.raw, "a") as file:
            file.write("$ " + " ".join(command) + " &\n")
            file.flush()
            server = subprocess.Popen(
                command, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True, env={**os.environ, **{k: str(v) for k, v in environment.items()}},
            )
        self.servers.append(server)

    def stop(self):
        """SIGTERM, after 20 s SIGKILL, to each server with all its children; its files go."""
        for sent, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            for server in reversed(self.servers):
                try:
                    os.killpg(server.pid, sent)
                except ProcessLookupError:
                    pass
            end = time.monotonic() + patience
            while self.pids() and time.monotonic() < end:
                for server in self.servers:
                    server.poll()
                time.sleep(0.05)
        self.servers = []
        shutil.rmtree(getattr(self, "dir", "/nonexistent"), ignore_errors=True)

    def stats(self):
        """Fields of /proc/PID/stat after the name, of every process in the servers' sessions that still runs."""
        sessions = {str(server.pid) for server in self.servers}
        for entry in Path("/proc").iterdir() if sessions else ():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if fields[3] in sessions and fields[0] != "Z":
                    yield entry.name, fields

    def pids(self):
        return [pid for pid, _ in self.stats()]

    def cpu_us(self):
        ticks = sum(int(fields[11]) + int(fields[12]) for _, fields in self.stats())
        return ticks * 1e6 / os.sysconf("SC_CLK_TCK")

    def rss_mb(self):
        return sum(int(fields[21]) for _, fields in self.stats()) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def karman(self, *arguments, timeout=120):
        return run([KARMAN, "-e", self.address, *arguments], self.raw, timeout)

    def bench(self, *arguments, topic="bench"):
        """`karman bench`: the load for Karman, and for RocketMQ, which speaks the same protocol."""
        return json.loads(self.karman("bench", arguments[0], topic, "-o", "json", *arguments[1:]))

    def load(self, peer, what, seconds=1):
        """The Go program: the same shapes and keys for the others."""
        command = [TARGET / "bin" / "load", f"-seconds={seconds}", peer, self.address, what]
        said = run(command, self.raw, timeout=120)
        return json.loads(said) if said else None
