#!/usr/bin/env python3
"""The cluster's commands as a user runs them, without a cluster: help, errors, and what `troupe launch` gives a program."""

import os
import signal
import subprocess
import sys
import tempfile
import unittest

TROUPE = os.environ["TROUPE_PROGRAM"]
LAUNCHERS = ("SLURM", "OMPI", "PMI", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER", "TORCHELASTIC", "ACCELERATE", "TROUPE")


def clean(**more):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHERS)}
    return {**environment, **more}


def troupe(*words, **environment):
    return subprocess.run([TROUPE, *words], capture_output=True, text=True, timeout=30, env=clean(**environment))


class ClusterCli(unittest.TestCase):
    def test_every_command_has_help(self):
        for command in ("node", "launch", "status", "top", "logs", "stop", "drain"):
            done = troupe(command, "--help")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("--certs", done.stdout, command)

    def test_a_head_that_is_not_there_is_named(self):
        done = troupe("status", "--head", "127.0.0.1:9", "--timeout", "1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("the head at 127.0.0.1:9 cannot be reached", done.stderr)
        done = troupe("status", "--head", "nonsense")
        self.assertIn("write HOST:PORT", done.stderr)

    def test_certificates_that_are_not_there_are_named(self):
        with tempfile.TemporaryDirectory() as directory:
            done = troupe("status", "--certs", directory + "/none")
            self.assertIn("is no directory of certificates", done.stderr)
            subprocess.run([TROUPE, "certs", "init", "--cluster", "test", "--directory", directory + "/ca"], check=True, capture_output=True)
            done = troupe("stop", "run", "--certs", directory + "/ca")
            self.assertEqual(done.returncode, 1)
            self.assertIn("has no certificate of role operator; make one: troupe certs issue --role operator", done.stderr)

    def test_a_node_says_what_is_wrong(self):
        self.assertIn("--join", troupe("node").stderr)
        self.assertIn("is no label; write KEY=VALUE", troupe("node", "--join", "127.0.0.1:9", "--label", "zone").stderr)
        self.assertIn("say how many there are", troupe("node", "--join", "127.0.0.1:9", "--resource", "disk=many").stderr)
        self.assertIn("is no amount of memory", troupe("node", "--join", "127.0.0.1:9", "--memory", "lots").stderr)
        done = troupe("node", "--join", "127.0.0.1:9", "--give-up-after", "1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("no head could be joined at 127.0.0.1:9", done.stderr)

    def test_launch_needs_a_program_and_nodes(self):
        self.assertIn("say which program", troupe("launch", "--nodes", "2").stderr)
        self.assertIn("say --nodes N", troupe("launch", "true").stderr)
        self.assertIn("several hosts need certificates", troupe("launch", "--hosts", "a,b", "--node-rank", "0", "true").stderr)
        self.assertIn("this host is none of a, b", troupe("launch", "--hosts", "a,b", "--insecure", "true").stderr)
        done = troupe("launch", "--nodes", "1", "no-such-program")
        self.assertIn("cannot run no-such-program", done.stderr)

    def test_launch_gives_the_program_what_it_needs(self):
        script = "import os, stat; d = os.environ['TROUPE_CLUSTER_CERTS']; t = d + '/token'; " \
                 "print(os.environ['TROUPE_CLUSTER_LISTEN'], os.environ['TROUPE_CLUSTER_NODES'], os.environ['TROUPE_CLUSTER_EXPECT'], " \
                 "oct(stat.S_IMODE(os.stat(t).st_mode)), oct(stat.S_IMODE(os.stat(d).st_mode)), len(open(t).read()), d); raise SystemExit(7)"
        done = troupe("launch", "--nodes", "2", sys.executable, "-c", script)
        self.assertEqual(done.returncode, 7, done.stderr)
        words = done.stdout.split()
        self.assertEqual(words[:6], ["127.0.0.1:0", "2", "node-1,node-2", "0o600", "0o700", "64"])
        self.assertFalse(os.path.exists(words[6]), "the token goes with the launch")
        self.assertIn("does it call troupe::cluster_from_environment()?", done.stderr)

    def test_launch_starts_agents_where_the_program_listens(self):
        script = "import os, socket, time; s = socket.create_server(('127.0.0.1', 0)); fd = int(os.environ['TROUPE_CLUSTER_TELL']); " \
                 "os.write(fd, b'127.0.0.1:%d\\n' % s.getsockname()[1]); os.close(fd); s.settimeout(10); s.accept(); s.accept(); print('both came')"
        done = troupe("launch", "--nodes", "2", sys.executable, "-c", script)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("both came", done.stdout)

    def test_launch_passes_signals_on(self):
        script = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); print('up', flush=True); time.sleep(20)"
        with subprocess.Popen([TROUPE, "launch", "--nodes", "1", sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=clean()) as launch:
            self.assertEqual(launch.stdout.readline(), "up\n")
            launch.send_signal(signal.SIGTERM)
            self.assertEqual(launch.wait(10), 5)

    def test_launch_knows_its_task(self):
        slurm = dict(SLURM_JOB_ID="4711", SLURM_STEP_ID="0", SLURM_PROCID="1", SLURM_LOCALID="1", SLURM_NODEID="0", SLURM_NNODES="2", SLURM_NTASKS="4", SLURM_JOB_NODELIST="node[1-2]")
        first = {**slurm, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "127.0.0.1,node2"}
        slurm["SLURM_JOB_NODELIST"] = first["SLURM_JOB_NODELIST"]
        script = "import time; print('up', flush=True); time.sleep(1.5); raise SystemExit(9)"
        with subprocess.Popen([TROUPE, "launch", "--insecure", sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=clean(**first)) as launch:
            self.assertEqual(launch.stdout.readline(), "up\n")
            done = troupe("launch", "--insecure", "false", **slurm)
            self.assertIn("this task waits for its node's first one", done.stderr)
            self.assertEqual(done.returncode, 9, "all end with the program's code")
            self.assertEqual(launch.wait(10), 9)
        del slurm["SLURM_STEP_ID"]
        self.assertIn("no task of srun", troupe("launch", "--insecure", "true", **slurm).stderr)
        head = dict(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29555")
        done = troupe("launch", "--insecure", sys.executable, "-c", "import os; print(os.environ['TROUPE_CLUSTER_LISTEN'], os.environ['TROUPE_CLUSTER_NODES'])", **head)
        self.assertEqual(done.stdout.split(), ["0.0.0.0:29555", "2"], done.stderr)

    def test_launch_reads_accelerates_file(self):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write("distributed_type: MULTI_CPU\nnum_processes: 4\nnum_machines: 2\nmachine_rank: 0\nmain_process_ip: 10.9.8.7\nmain_process_port: 1234\n")
            file.flush()
            done = troupe("launch", "--accelerate", file.name, "--insecure", sys.executable, "-c", "import os; print(os.environ['TROUPE_CLUSTER_LISTEN'], os.environ['TROUPE_CLUSTER_NODES'])")
            self.assertEqual(done.stdout.split(), ["10.9.8.7:1234", "2"], done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
