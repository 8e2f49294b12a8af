#!/usr/bin/env bash
# W2V2 of the paper's size on real speech for minutes of one GPU, and ABX by layer: benchmarks/gpu_speech.sh CORPUS AUDIO [OUT]
#
# CORPUS is a corpus of speech with test.item, and AUDIO the folder of its sounds, such as those of
# `vgsplus data festvox CORPUS --root VOICE`. One call takes at most ten minutes; another of the same trains on. The machine
# needs what pyproject.toml depends on, or the wheels in .wheels (see gpu.sh). More arguments are those of `vgsplus train`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source benchmarks/gpu_env.sh
corpus=$1 audio=$2 out=${3:-out/gpu-speech}
timeout --signal=INT --kill-after=60 "${SECONDS_LIMIT:-450}" ${PYTHON:-python3} -m vgsplus train "${PRESET:-paper}" \
	--out "$out" --resume --set corpus="$corpus" --set schedule.variant=w2v2 --set model.grounded=false \
	--set model.quantizer_logit_std=5 --set model.mask_vector_scale=0 --set validate_every=null --set evaluate_every=null \
	"${@:4}" || test $? = 124
${PYTHON:-python3} -m vgsplus evaluate abx "$out" "$corpus/test.item" "$audio" --condition within --baseline
