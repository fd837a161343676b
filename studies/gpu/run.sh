#!/usr/bin/env bash
# Everything that only a GPU shows, in about eight minutes: bash studies/gpu/run.sh FOLDER
# It takes the Python on PATH if that has torch and Hydra, and else installs the project. Each step has a time limit and
# writes FOLDER/STEP.json and FOLDER/STEP.log; a step whose JSON is there is skipped. DEVICE=cpu tries the steps small.
set -uo pipefail
out=$(mkdir -p "${1:?expected a folder for the results}" && cd "$1" && pwd)
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

if ! python3 -c "import torch, hydra" 2>/dev/null; then
  python3 -m venv "$out/venv" && "$out/venv/bin/pip" install --quiet uv
  UV_PROJECT_ENVIRONMENT="$out/venv" "$out/venv/bin/uv" sync --quiet --extra dev
  export PATH="$out/venv/bin:$PATH"
fi
python3 studies/gpu/measure.py machine --out "$out" || exit 1

step() { # name, seconds, command
  local name=$1 limit=$2 started=$SECONDS
  shift 2
  if [[ -e $out/$name.json ]]; then return; fi
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
  echo "$name: status $?, $((SECONDS - started)) s"
  tail -n "${LINES_SHOWN:-6}" "$out/$name.log"
}

step tests 150 python3 studies/gpu/measure.py tests --out "$out"
for model in msae pyramid; do
  for batch in 64 1024; do
    step "speed_${model}_$batch" 60 python3 studies/gpu/measure.py speed --model $model --batch $batch --out "$out"
  done
done
step seeds 170 python3 studies/gpu/measure.py seeds --turns "${TURNS:-2}" --out "$out"
step precision 60 python3 studies/gpu/measure.py precision --out "$out"
step profile 60 python3 studies/gpu/measure.py profile --out "$out"
step memory 90 python3 studies/gpu/measure.py memory --out "$out"
