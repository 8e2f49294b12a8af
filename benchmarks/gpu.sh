#!/usr/bin/env bash
# Everything that a machine with a GPU is asked, in one call of at most eight minutes: benchmarks/gpu.sh [OUT]
#
# The machine needs PyTorch 2.11 or later, transformers, h5py, pyyaml, lightning and tensorboard, but no network. What
# else vgsplus imports travels as wheels in the folder .wheels of the checkout, a few megabytes, made beforehand by
#
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#     --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 -d .wheels \
#     annotated-types cffi lightning-fabric pycparser pydantic==2.12.5 pydantic-core==2.41.5 soundfile soxr \
#     typing-inspection
#
# OUT/gpu.json and OUT/gpu.txt hold the results. DEVICE=cpu and more arguments of gpu.py serve to try it elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-out/gpu}
mkdir -p "$out"
source benchmarks/gpu_env.sh
${PYTHON:-python3} benchmarks/gpu.py --out "$out" "${@:2}" 2>&1 | tee "$out/gpu.txt"
