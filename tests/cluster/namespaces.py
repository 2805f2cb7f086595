"""Hosts for tests: network namespaces on one switch, with cables that can be pulled, slowed and cut one way.

The switch is a thread of the test, which has the other ends of the hosts' cables (TAP devices): what a fault does is said here in Python, and
needs no netem, iptables or bridge of the kernel. Names begin with tr and the test's pid, so that tests run side by side; namespaces of tests that are
gone are swept, and cables end with the process that holds them.
"""

import fcntl
import heapq
import os
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import threading
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
FRAME_BYTES = 65_536
QUEUED_FRAMES = 20_000  # on the whole switch, for delays; more are lost


def why_not():
    """Why namespaces cannot be made here; empty: they can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if shutil.which("ip") is None:
        return "needs ip (Debian package iproute2)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs /dev/net/tun"
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


class Cable:
    """From a host to the switch. Faults of either way are chances of loss and seconds of delay, and may be changed at any time."""

    def __init__(self, name):
        self.descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
        self.loss_in = self.loss_out = 0.0  # in: to the host
        self.delay = 0.0  # of each way
        self.bytes_out = 0  # that the host sent

    def write(self, frame):
        try:
            os.write(self.descriptor, frame)
        except OSError:  # the host is down, or does not read
            pass


class Switch:
    """Passes Ethernet frames on by where their receiver was last seen."""

    def __init__(self):
        self.cables = []
        self._where = {}
        self._queue = []
        self._order = 0
        self._random = random.Random(1)
        self._stop = False
        self._thread = None

    def start(self):
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self):
        self._stop = True
        if self._thread:
            self._thread.join(5)
        for cable in self.cables:
            os.close(cable.descriptor)
        self.cables.clear()

    def _run(self):
        poll = select.poll()
        by_descriptor = {cable.descriptor: cable for cable in self.cables}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        while not self._stop:
            wait = 100.0 if not self._queue else max(0.0, min(100.0, 1000 * (self._queue[0][0] - time.monotonic())))
            for descriptor, _ in poll.poll(wait):
                self._read(by_descriptor[descriptor])
            while self._queue and self._queue[0][0] <= time.monotonic():
                _, _, cable, frame = heapq.heappop(self._queue)
                cable.write(frame)

    def _read(self, cable):
        for _ in range(64):
            try:
                frame = os.read(cable.descriptor, FRAME_BYTES)
            except OSError:
                return
            cable.bytes_out += len(frame)
            if self._random.random() < cable.loss_out:
                continue
            self._where[frame[6:12]] = cable
            to = self._where.get(frame[0:6])
            for other in [to] if to else [one for one in self.cables if one is not cable]:
                self._pass(frame, other, cable.delay + other.delay)

    def _pass(self, frame, cable, delay):
        if self._random.random() < cable.loss_in:
            return
        if delay <= 0:
            cable.write(frame)
        elif len(self._queue) < QUEUED_FRAMES:
            self._order += 1
            heapq.heappush(self._queue, (time.monotonic() + delay, self._order, cable, frame))


class Host:
    """A namespace with one cable."""

    def __init__(self, network, number):
        self.network = network
        self.namespace = f"{network.name}h{number}"
        self.address = f"10.77.0.{number}"
        self.covers = None  # (directory, disk): what programs started here see at the directory
        run("ip", "netns", "add", self.namespace)
        device = f"{network.name}v{number}"
        self.cable = Cable(device)
        network.switch.cables.append(self.cable)
        run("ip", "link", "set", device, "netns", self.namespace, "name", "eth0")
        self.ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")
        self.ip("link", "set", "lo", "up")

    def ip(self, *words):
        run("ip", "-n", self.namespace, *words)

    def start(self, *words, name=None, **environment):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("TROUPE_CLUSTER", "TROUPE_HEAD", "TROUPE_CERTS"))}
        clean.update(environment)
        own = ("unshare", "-m", "sh", "-c", 'mount --make-rprivate / && mount --bind "$1" "$0" && shift && exec "$@"', *self.covers) if self.covers else ()
        program = Program(["ip", "netns", "exec", self.namespace, *own, *map(str, words)], clean, name or f"{os.path.basename(str(words[0]))} on {self.address}")
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
        self.cable.loss_in = self.cable.loss_out = 1.0

    def plug(self):
        self.cable.loss_in = self.cable.loss_out = self.cable.delay = 0.0

    def impair(self, loss=0.0, delay=0.0):
        """Both ways: loss 0.3, delay 0.5 s."""
        self.cable.loss_in = self.cable.loss_out = loss
        self.cable.delay = delay

    def deafen(self):
        """What it sends arrives, but nothing reaches it."""
        self.cable.loss_in = 1.0

    def mute(self):
        """It hears, but nothing that it sends arrives."""
        self.cable.loss_out = 1.0

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
        self.switch = Switch()
        self.programs = []
        self.hosts = []
        try:
            for number in range(1, count + 1):
                self.hosts.append(Host(self, number))
            self.switch.start()
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
                program._reader.join(5)
                program._process.stdout.close()
            except subprocess.TimeoutExpired:
                pass
        for host in self.hosts:
            run("ip", "netns", "del", host.namespace, check=False)
        self.switch.close()
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
