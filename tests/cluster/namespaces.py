"""Hosts for tests: network namespaces on one bridge, with cables that can be pulled, slowed and cut one way.

Names begin with tr and the test's pid, so that tests run side by side; those of tests that are gone are swept.
"""

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time


def why_not():
    """Why namespaces cannot be made here; empty: they can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"needs {tool} (Debian package iproute2)"
    name = f"tr{os.getpid()}probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return "may not make network namespaces here: " + made.stderr.strip()
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


def run(*words, check=True):
    done = subprocess.run(words, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(" ".join(words) + ": " + done.stderr.strip())
    return done.stdout


def sweep():
    """Removes what tests that were killed have left."""
    for name in re.findall(r"^(tr(\d+)\w*)", run("ip", "netns", "list", check=False), re.M):
        if not os.path.exists(f"/proc/{name[1]}"):
            for pid in run("ip", "netns", "pids", name[0], check=False).split():
                os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "del", name[0], check=False)
    for name in re.findall(r"^\d+: (tr(\d+)br)", run("ip", "-o", "link", check=False), re.M):
        if not os.path.exists(f"/proc/{name[1]}"):
            run("ip", "link", "del", name[0], check=False)


class Program:
    """A program in a host, and what it has printed."""

    def __init__(self, words, environment, name):
        self.name = name
        self.lines = []
        self.times = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self.times.append(time.monotonic())
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def pid(self):
        return self._process.pid

    def text(self):
        with self._changed:
            return "\n".join(self.lines)

    def wait_for(self, pattern, limit, after=0):
        """The first match in lines from number `after` on, with the time when its line came. Fails after `limit` seconds, showing what was printed."""
        deadline = time.monotonic() + limit
        expression = re.compile(pattern)
        seen = after
        with self._changed:
            while True:
                for number in range(seen, len(self.lines)):
                    found = expression.search(self.lines[number])
                    if found:
                        return found, self.times[number]
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if left <= 0 or (self._process.poll() is not None and not self._reader.is_alive()):
                    raise AssertionError(f"{self.name}: no '{pattern}' within {limit} s; it printed:\n" + "\n".join(self.lines[-60:]))
                self._changed.wait(min(left, 0.2))

    def wait(self, limit):
        try:
            code = self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name}: has not ended within {limit} s; it printed:\n" + "\n".join(self.lines[-60:])) from None
        self._reader.join(2)
        return code

    def runs(self):
        return self._process.poll() is None

    def signal(self, number):
        if self.runs():
            self._process.send_signal(number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self._process.wait(10)


class Host:
    """A namespace with one cable."""

    def __init__(self, network, number):
        self.network = network
        self.namespace = f"{network.name}h{number}"
        self.address = f"10.77.0.{number}"
        self.cable = f"{network.name}v{number}"  # the bridge's end
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        run("ip", "link", "set", self.cable, "master", network.bridge, "up")
        self.ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")
        self.ip("link", "set", "lo", "up")

    def ip(self, *words):
        run("ip", "-n", self.namespace, *words)

    def start(self, *words, name=None, **environment):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("TROUPE_CLUSTER", "TROUPE_HEAD", "TROUPE_CERTS"))}
        clean.update(environment)
        program = Program(["ip", "netns", "exec", self.namespace, *map(str, words)], clean, name or f"{os.path.basename(str(words[0]))} on {self.address}")
        self.network.programs.append(program)
        return program

    def pids(self):
        return [int(pid) for pid in run("ip", "netns", "pids", self.namespace, check=False).split()]

    def signal_all(self, number):
        for pid in self.pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def unplug(self):
        run("ip", "link", "set", self.cable, "down")

    def plug(self):
        run("ip", "link", "set", self.cable, "up")

    def impair(self, *netem):
        """Both ways: delay 500ms, loss 30%."""
        run("tc", "qdisc", "replace", "dev", self.cable, "root", "netem", *netem)
        run("ip", "netns", "exec", self.namespace, "tc", "qdisc", "replace", "dev", "eth0", "root", "netem", *netem)

    def heal(self):
        run("tc", "qdisc", "del", "dev", self.cable, "root", check=False)
        run("ip", "netns", "exec", self.namespace, "tc", "qdisc", "del", "dev", "eth0", "root", check=False)

    def deafen(self):
        """What it sends arrives, but nothing reaches it."""
        run("tc", "qdisc", "replace", "dev", self.cable, "root", "netem", "loss", "100%")

    def mute(self):
        """It hears, but nothing that it sends arrives."""
        run("ip", "netns", "exec", self.namespace, "tc", "qdisc", "replace", "dev", "eth0", "root", "netem", "loss", "100%")

    def listeners(self):
        """Addresses that something listens on here, beyond loopback: [(ip, port)]."""
        found = set()
        for file, is_six in (("tcp", False), ("tcp6", True)):
            for line in run("ip", "netns", "exec", self.namespace, "cat", f"/proc/net/{file}", check=False).splitlines()[1:]:
                local, _, state = line.split()[1:4]
                if state != "0A":
                    continue
                address, port = local.split(":")
                if is_six:
                    loopback = address == "00000000000000000000000001000000"
                else:
                    loopback = address.endswith("7F")  # little-endian
                if not loopback:
                    found.add((self.address, int(port, 16)))
        return sorted(found)


class Network:
    """`count` hosts, 10.77.0.1 on."""

    def __init__(self, count):
        sweep()
        self.name = f"tr{os.getpid()}"
        self.bridge = self.name + "br"
        self.programs = []
        self.hosts = []
        try:
            run("ip", "link", "add", self.bridge, "type", "bridge", "forward_delay", "0")
            run("ip", "link", "set", self.bridge, "up")
            for number in range(1, count + 1):
                self.hosts.append(Host(self, number))
        except Exception:
            self.close()
            raise

    def close(self):
        for program in self.programs:
            program.signal(signal.SIGKILL)
        for host in self.hosts:
            host.signal_all(signal.SIGKILL)
        for program in self.programs:
            try:
                program._process.wait(5)
            except subprocess.TimeoutExpired:
                pass
        for host in self.hosts:
            run("ip", "netns", "del", host.namespace, check=False)
            run("ip", "link", "del", host.cable, check=False)
        run("ip", "link", "del", self.bridge, check=False)
        self.hosts.clear()


PROBE = r"""
import socket, ssl, sys
host, port = sys.argv[1], int(sys.argv[2])
def plain(bytes_):
    try:
        with socket.create_connection((host, port), 2) as s:
            s.settimeout(2)
            s.sendall(bytes_)
            got = s.recv(256)
            return got
    except (ConnectionError, socket.timeout, OSError):
        return b""
# A TLS alert (0x15) or nothing may come back, and no word of ours.
for said in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 64):
    got = plain(said)
    if got and got[:1] != b"\x15":
        print("answers plain bytes with", got[:40]); sys.exit(1)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
try:
    with socket.create_connection((host, port), 2) as raw:
        raw.settimeout(3)
        with context.wrap_socket(raw) as tls:
            tls.sendall(b"hello")
            if tls.recv(64):
                print("talks to a client without a certificate"); sys.exit(1)
except (ssl.SSLError, ConnectionError, socket.timeout, OSError):
    pass
print("demands TLS")
"""


def demands_tls(from_host, address, port):
    """Empty when a stranger at `from_host` gets nothing out of the listener; else what it got."""
    done = subprocess.run(["ip", "netns", "exec", from_host.namespace, "python3", "-c", PROBE, address, str(port)], capture_output=True, text=True, timeout=30)
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()
