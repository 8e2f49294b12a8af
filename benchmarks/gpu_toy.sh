#!/usr/bin/env bash
# The toy's nine variants, five seeds, three times the preset's length, on one GPU: benchmarks/gpu_toy.sh [OUT]
#
# One call takes at most nine minutes; another of the same goes on where it stopped. A model of the toy's size should leave
# most of a GPU idle, so 15 runs train in parallel. OUT/report holds the tables, the figures and the claims.
#
# The machine needs what pyproject.toml depends on; where there is no network, bring the wheels that it lacks in the folder
# .wheels of the checkout (see gpu.sh). More arguments are those of `vgsplus reproduce`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source benchmarks/gpu_env.sh
timeout --signal=INT --kill-after=40 "${SECONDS_LIMIT:-500}" ${PYTHON:-python3} -m vgsplus reproduce "${PRESET:-toy}" \
	--seeds "${SEEDS:-5}" --jobs "${JOBS:-15}" --set schedule.pretraining_epochs=3.6 --set schedule.epochs=12.6 \
	--out "${1:-out/gpu-toy}" "${@:2}"
