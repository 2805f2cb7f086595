"""What the peers' programs share: a quiet environment, starting two ranks on loopback, one JSON line at the end."""
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile

os.environ.update({k: v for k, v in {
    "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1",
    "RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore",
    "TF_CPP_MIN_LOG_LEVEL": "3"}.items() if k not in os.environ})


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_ranks(world, distributed=True):
    """Starts this program `world` times with RANK set and returns what each rank passed to `finish`."""
    with tempfile.TemporaryDirectory() as directory:
        port = str(free_port())
        ranks = []
        for rank in range(world):
            env = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank), PEER_OUT=f"{directory}/{rank}", MASTER_ADDR="127.0.0.1",
                       MASTER_PORT=port, PEER_DISTRIBUTED=str(int(distributed and world > 1)))
            if distributed:
                env.update(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
            ranks.append(subprocess.Popen([sys.executable, *sys.argv], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        errors = [process.communicate()[1] for process in ranks]
        for process, error in zip(ranks, errors):
            if process.returncode:
                sys.exit(f"{sys.argv[0]}: rank failed: {error.strip().splitlines()[-1] if error.strip() else process.returncode}")
        return [json.load(open(f"{directory}/{rank}")) for rank in range(world)]


def run_in_directory(parser, rank_main):
    """Two ranks with a directory of their own, `options.dir`, below --dir: what each passed to `finish`."""
    parser.add_argument("--dir", default=None)
    options = parser.parse_args()
    if is_rank():
        options.dir = os.environ["PEER_DIRECTORY"]
        rank_main(options)
    with tempfile.TemporaryDirectory(dir=options.dir, ignore_cleanup_errors=True) as directory:
        os.environ["PEER_DIRECTORY"] = directory
        return run_ranks(2)


def is_rank():
    return "PEER_OUT" in os.environ


def start_rank():
    """This rank's number, after joining the process group where there is one."""
    rank = int(os.environ["RANK"])
    if os.environ["PEER_DISTRIBUTED"] == "1":
        import torch.distributed as dist
        dist.init_process_group("gloo")
    return rank


def finish(value):
    """Leaves the rank's figures and ends the process at once."""
    with open(os.environ["PEER_OUT"], "w") as file:
        json.dump(value, file)
    os._exit(0)


def emit(**figures):
    print(json.dumps(figures), flush=True)


median = statistics.median
