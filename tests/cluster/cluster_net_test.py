#!/usr/bin/env python3
"""Clusters of hosts that are network namespaces: the same curve as one process, and every way to lose a node.

TROUPE_CLUSTER_SEEDS: how often each fault is repeated (1). Skipped, with a notice, without root or namespaces.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest

import namespaces

PROGRAMS = os.environ["TROUPE_PROGRAMS"]
TROUPE = os.environ["TROUPE_PROGRAM"]
TRAIN = os.path.join(PROGRAMS, "cluster_train")  # a model, by the Accelerator
PLAIN = os.path.join(PROGRAMS, "cluster_plain")  # the same protocol without LibTorch: faults are told apart sooner
SEEDS = int(os.environ.get("TROUPE_CLUSTER_SEEDS", "1"))
REASON = namespaces.why_not()
PORT = 7077
CHECKPOINT_EVERY = 10


def curve_of(text):
    """The last loss reported of every update."""
    return {int(update): float(loss) for update, loss in re.findall(r"^update (\d+) loss (\S+)", text, re.M)}


def digest_of(text):
    return re.search(r"^digest (\d+)", text, re.M).group(1)


@unittest.skipIf(REASON, REASON)
class ClusterNet(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="troupe-cluster-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.network = None
        self.own_disks = False
        self.agents = {}
        self.heads = []

    def tearDown(self):
        if self.network:
            self.network.close()

    # ---- parts ----------------------------------------------------------------------------------------------

    def make_certificates(self, count):
        for words in (["init", "--cluster", "test", "--directory", "ca"], ["issue", "--directory", "ca", "--role", "head", "--name", "head", "--into", "head"],
                      ["issue", "--directory", "ca", "--role", "operator", "--name", "operator", "--into", "operator"],
                      *(["issue", "--directory", "ca", "--role", "node", "--name", f"n{i}", "--into", f"n{i}"] for i in range(1, count + 1))):
            subprocess.run([TROUPE, "certs", *words], cwd=self.directory, check=True, capture_output=True, text=True)

    def path(self, name):
        return os.path.join(self.directory, name)

    def make_hosts(self, nodes):
        """The first host is the head's alone; nodes are n1, n2, … on the others."""
        self.network = namespaces.Network(nodes + 1)
        self.make_certificates(nodes)
        for number in range(1, nodes + 1):
            if self.own_disks:
                self.host(number).covers = (self.path("storage"), self.path(f"disk{number}"))
                for directory in self.host(number).covers:
                    os.makedirs(directory, exist_ok=True)
            self.start_agent(number)

    def host(self, number):
        return self.network.hosts[number]

    @property
    def head_address(self):
        return f"{self.network.hosts[0].address}:{PORT}"

    def start_agent(self, number, cpus=2):
        self.agents[number] = self.host(number).start(TROUPE, "node", "--join", self.head_address, "--certs", self.path(f"n{number}"), "--cpus", cpus, name=f"agent n{number}")
        return self.agents[number]

    def start_head(self, *arguments, nodes=None, port=PORT, name="run", program=PLAIN):
        head = self.network.hosts[0].start(program, "--storage", self.path("storage"), "--name", name, *arguments, name="head",
                                           TROUPE_CLUSTER_LISTEN=f"{self.network.hosts[0].address}:{port}", TROUPE_CLUSTER_CERTS=self.path("head"),
                                           TROUPE_CLUSTER_NODES=str(len(self.agents) if nodes is None else nodes), TROUPE_CLUSTER_WAIT="20")
        self.heads.append(head)
        return head

    def troupe(self, *words, port=PORT):
        host = self.network.hosts[0]
        done = subprocess.run(["ip", "netns", "exec", host.namespace, TROUPE, words[0], "--head", f"{host.address}:{port}", "--certs", self.path("operator"), *words[1:]],
                              capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def finish(self, head, limit=90):
        code = head.wait(limit)
        self.assertEqual(code, 0, head.text()[-6000:])
        return head.text()

    def one_process(self, updates=40, program=PLAIN):
        """One rank, with the batches of all: the reference."""
        done = subprocess.run([program, "--storage", self.path("reference"), "--placement", "threads", "--ranks", "1", "--batch", "12", "--updates", str(updates)],
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return curve_of(done.stdout)

    def assert_same_curve(self, text, reference, tolerance=1e-5, whole=True):
        """Sums of gradients are in another order than in one process: losses differ in the last digits of float32, and more with every update.

        Not `whole`: a lost node's last reports may be missing for updates that a checkpoint has kept, so that no attempt repeats them.
        """
        curve = curve_of(text)
        missing = set(reference) - set(curve)
        self.assertLessEqual(len(missing), 0 if whole else CHECKPOINT_EVERY, sorted(missing))
        self.assertIn(max(reference), curve)
        worst = max(abs(loss - reference[update]) for update, loss in curve.items())
        print(f"losses differ by {worst:.2g} at most", flush=True)
        self.assertLess(worst, tolerance)
        self.assertLess(reference[max(reference)], reference[min(reference)], "the model learns")

    # ---- the same curve -------------------------------------------------------------------------------------

    def check_curve(self, strategy):
        self.make_hosts(3)
        text = self.finish(self.start_head("--strategy", strategy, program=TRAIN), 120)
        self.assert_same_curve(text, self.one_process(program=TRAIN))

    def test_ddp_has_the_curve_of_one_process(self):
        self.check_curve("ddp")

    def test_zero3_has_the_curve_of_one_process(self):
        self.check_curve("zero3")

    def test_two_runs_at_once(self):
        self.make_hosts(3)
        # Each head has nodes of its own here: an agent serves one head.
        second = [self.host(number).start(TROUPE, "node", "--join", f"{self.network.hosts[0].address}:{PORT + 1}", "--certs", self.path(f"n{number}"), "--cpus", 2)
                  for number in (1, 2, 3)]
        self.assertEqual(len(second), 3)
        heads = [self.start_head("--step-ms", "20"), self.start_head("--step-ms", "20", port=PORT + 1, name="other")]
        reference = self.one_process()
        for head in heads:
            self.assert_same_curve(self.finish(head), reference)

    # ---- what strangers find --------------------------------------------------------------------------------

    def test_every_listener_demands_tls(self):
        self.make_hosts(3)
        self.host(3).impair(delay=0.2)  # so that ranks take long to meet
        head = self.start_head("--updates", "60", "--step-ms", "100")
        stranger = self.network.hosts[-1]
        scanned, answers, probes = set(), [], []

        def probe(address, port):
            answers.append((port, namespaces.demands_tls(stranger, address, port)))

        # From before ranks meet, whose listeners close when all are connected, until they train.
        while not re.search(r"^update 20 ", head.text(), re.M) and head.runs():
            for host in self.network.hosts:
                for address, port in set(host.listeners()) - scanned:
                    scanned.add((address, port))
                    probes.append(threading.Thread(target=probe, args=(address, port)))
                    probes[-1].start()
        for one in probes:
            one.join()
        self.assertEqual([answer for answer in answers if answer[1]], [])
        self.assertEqual(len(answers), len(scanned))
        self.assertIn((self.network.hosts[0].address, PORT), scanned)
        self.assertGreater(len(scanned), 1, "where ranks meet")
        print(f"{len(scanned)} listeners", flush=True)
        # Secrets are no argument and in no environment.
        token = open(self.path("head/token")).read().strip()
        for host in self.network.hosts:
            for pid in host.pids():
                for file in ("cmdline", "environ"):
                    try:
                        self.assertNotIn(token.encode(), open(f"/proc/{pid}/{file}", "rb").read())
                    except FileNotFoundError:
                        pass
        self.finish(head)

    def test_operators_see_and_order(self):
        self.make_hosts(2)
        head = self.start_head("--ranks", "4", "--updates", "400", "--step-ms", "50")
        head.wait_for(r"^update 3 ", 40)
        status = self.troupe("status")
        self.assertRegex(status, r"n1 +up")
        self.assertRegex(status, r"run +running +4")
        status = json.loads(self.troupe("status", "--json"))
        self.assertEqual([node["name"] for node in status["nodes"]], ["n1", "n2"])
        self.assertEqual(status["runs"][0]["node_of_rank"], ["n1", "n1", "n2", "n2"])
        self.assertGreater(status["runs"][0]["step"], 0)
        self.assertIn("loss", status["runs"][0]["last_report"]["metrics"])
        self.assertEqual(self.troupe("logs", "run", "--rank", "3"), "[run rank 3 @n2] begins after update 0\n")
        self.assertEqual(len(self.troupe("logs").splitlines()), 4)
        self.assertIn("steps/s".upper(), self.troupe("top", "--times", "2", "--every", "0.1"))
        follower = self.network.hosts[0].start(TROUPE, "logs", "--follow", "--head", self.head_address, "--certs", self.path("operator"))
        follower.wait_for(r"^\[run rank 0 @n1\] begins", 10)
        self.troupe("stop", "run")
        self.assertEqual(head.wait(30), 130, "as after Ctrl-C")
        self.assertNotIn("update 400 ", head.text())
        self.assertEqual(follower.wait(10), 0, follower.text())
        self.assertIn("has ended", follower.text())

    def test_launch_on_every_host_of_a_list(self):
        self.network = namespaces.Network(2)
        self.make_certificates(0)
        subprocess.run([TROUPE, "certs", "issue", "--directory", "ca", "--role", "node", "--name", "node", "--into", "head"], cwd=self.directory, check=True, capture_output=True)
        hosts = ",".join(host.address for host in self.network.hosts)
        # Hosts here share the machine's name, which nodes are called by.
        launches = [host.start("unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', f"host{number}", TROUPE, "launch", "--hosts", hosts, "--certs", self.path("head"), "--cpus", 2,
                               PLAIN, "--storage", self.path("storage"), "--ranks", 4, "--batch", 3)
                    for number, host in enumerate(self.network.hosts)]
        text = self.finish(launches[0])
        self.assert_same_curve(text, self.one_process())
        self.assertEqual(launches[1].wait(20), 0, launches[1].text())
        self.assertIn("as node node-host1", launches[1].text())

    # ---- losing nodes ---------------------------------------------------------------------------------------

    def check_fault(self, strike, repair=None, spare=True, program=PLAIN):
        """Strikes node 2 after update 12; the run ends with the reference's curve, and took up its next step within 5 s of the loss."""
        updates = 60
        reference = self.one_process(updates=updates, program=program)
        for seed in range(SEEDS):
            with self.subTest(seed=seed):
                self.make_hosts(4 if spare else 3)
                head = self.start_head("--strategy", "zero3", "--updates", updates, "--step-ms", "60", "--failures", "3", program=program)
                head.wait_for(r"^update 12 ", 40)
                time.sleep(0.05 * seed)
                struck = time.monotonic()
                before = len(head.lines)
                strike(self.host(2), self.agents[2])
                _, resumed = head.wait_for(r"^update \d+ loss \S+ attempt [2-9]", 40, after=before)
                if repair:
                    repair(self.host(2), self.agents[2])
                text = self.finish(head)
                self.assert_same_curve(text, reference, whole=False)
                print(f"next step {resumed - struck:.2f} s after the loss", flush=True)
                self.assertLess(resumed - struck, 10)
                self.network.close()
                self.network = None
                self.agents.clear()
                shutil.rmtree(self.path("storage"), ignore_errors=True)
                for name in os.listdir(self.directory):
                    if name != "reference":
                        shutil.rmtree(self.path(name), ignore_errors=True)

    def test_a_node_is_killed(self):
        self.check_fault(lambda host, agent: host.signal_all(signal.SIGKILL))

    def test_a_node_of_a_zero3_run_is_killed(self):
        self.check_fault(lambda host, agent: host.signal_all(signal.SIGKILL), program=TRAIN)

    def test_a_node_is_killed_whose_disk_is_its_own(self):
        self.own_disks = True
        self.check_fault(lambda host, agent: host.signal_all(signal.SIGKILL), program=TRAIN)

    def test_a_node_is_unplugged_whose_disk_is_its_own(self):
        self.own_disks = True
        self.check_fault(lambda host, agent: host.unplug(), lambda host, agent: host.plug())

    def test_a_node_is_stopped(self):
        self.check_fault(lambda host, agent: host.signal_all(signal.SIGSTOP), lambda host, agent: host.signal_all(signal.SIGCONT))

    def test_a_node_is_unplugged(self):
        self.check_fault(lambda host, agent: host.unplug(), lambda host, agent: host.plug())

    def test_a_node_hears_nothing(self):
        self.check_fault(lambda host, agent: host.deafen(), lambda host, agent: host.plug())

    def test_a_node_is_not_heard(self):
        self.check_fault(lambda host, agent: host.mute(), lambda host, agent: host.plug())

    def test_an_agent_is_killed_and_started_again(self):
        def strike(host, agent):
            agent.kill()
            host.signal_all(signal.SIGKILL)
            self.start_agent(2)
        self.check_fault(strike, spare=False)

    def check_slow(self, **fault):
        """Survives, or is decided: the run ends well, whether its ranks stayed or went elsewhere."""
        self.make_hosts(4)
        head = self.start_head("--updates", "30", "--step-ms", "20", "--failures", "5")
        head.wait_for(r"^update 5 ", 40)
        self.host(2).impair(**fault)
        text = self.finish(head, 240)
        self.assert_same_curve(text, self.one_process(updates=30), whole=False)
        print("attempts:", max(map(int, re.findall(r"attempt (\d+)", text))), flush=True)

    def test_half_a_second_of_delay(self):
        self.check_slow(delay=0.5)

    def test_thirty_percent_loss(self):
        self.check_slow(loss=0.3)

    def test_a_node_leaves_on_notice(self):
        self.make_hosts(4)
        head = self.start_head("--updates", "60", "--step-ms", "60")
        head.wait_for(r"^update 12 ", 40)
        # The agent itself: `ip netns exec` becomes it.
        self.agents[2].signal(signal.SIGTERM)
        self.assertEqual(self.agents[2].wait(40), 0, self.agents[2].text())
        self.assert_same_curve(self.finish(head), self.one_process(updates=60))

    def test_a_node_drains(self):
        self.make_hosts(4)
        head = self.start_head("--updates", "80", "--step-ms", "60")
        head.wait_for(r"^update 12 ", 40)
        self.troupe("drain", "n2")
        head.wait_for(r"attempt 2", 40)
        self.assertRegex(self.troupe("status"), r"n2 +draining")
        self.assert_same_curve(self.finish(head), self.one_process(updates=80))

    def test_the_head_is_killed_whose_nodes_have_disks_of_their_own(self):
        self.own_disks = True
        self.test_the_head_is_killed_and_started_again()

    def test_the_head_is_killed_and_started_again(self):
        self.make_hosts(3)
        words = ("--strategy", "zero3", "--updates", "60", "--step-ms", "60")
        first = self.start_head(*words)
        first.wait_for(r"^update 25 ", 40)
        first.kill()
        time.sleep(1)
        second = self.start_head(*words)
        text = self.finish(second, 120)
        self.assertGreater(min(curve_of(text)), 10, "went on from a checkpoint")
        reference = self.one_process(updates=60)
        self.assert_same_curve(text, {update: loss for update, loss in reference.items() if update >= min(curve_of(text))})


if __name__ == "__main__":
    unittest.main(verbosity=2)
