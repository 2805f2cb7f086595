#!/usr/bin/env bash
# A run on a Slurm allocation: one task per node; the first one's is the head. Submit it with
#   sbatch docs/deploy/slurm.sh build/examples/bert_mrpc --ranks 16
# Certificates, once, on a file system that all nodes see:
#   troupe certs init --cluster lab --directory ~/troupe/ca
#   troupe certs issue --directory ~/troupe/ca --role head --name head --into ~/troupe/certs
#   troupe certs issue --directory ~/troupe/ca --role node --name node --into ~/troupe/certs
#SBATCH --job-name=troupe
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=troupe-%j.log
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: sbatch $0 PROGRAM ARGUMENT..." >&2
  exit 2
fi
troupe=${TROUPE:-troupe}
certs=${TROUPE_CERTS:-$HOME/troupe/certs}

# Slurm's TERM, two minutes before the end, goes on to the tasks: the run stops at a step boundary, with a checkpoint.
srun --kill-on-bad-exit=0 --cpu-bind=none "$troupe" launch --certs "$certs" "$@" &
tasks=$!
trap 'kill -TERM "$tasks"' TERM
code=0
wait "$tasks" || code=$?
# The first wait ends with the signal, not with the tasks.
if [ "$code" -gt 128 ] && kill -0 "$tasks" 2>/dev/null; then
  code=0
  wait "$tasks" || code=$?
fi
exit "$code"
