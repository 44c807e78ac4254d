#!/usr/bin/env bash
# Measures every method on this machine's GPU (README.md beside this file):
#   tests/gpu/run.sh [--wheels DIR] [--minutes 8] [--size 350M] [--dry-run] [folder with a model]
# PYTHON chooses the Python. What it lacks is installed into scratch/gpu-venv: from DIR, without a network, if --wheels is given.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
wheels=()
arguments=()
while (($#)); do
  case $1 in
    --wheels)
      wheels=(--no-index --find-links "$(cd "${2:?--wheels: expected a folder}" && pwd)")
      shift 2
      ;;
    *)
      arguments+=("$1")
      shift
      ;;
  esac
done

if ! "$python" "$root/tests/gpu/needed.py" --check; then
  venv=$root/scratch/gpu-venv
  "$python" -m venv --system-site-packages --without-pip "$venv"
  # If $python is itself in a virtual environment, "system" is not that one but the Python below it: name its folders.
  "$python" -c 'import sysconfig; print(*{sysconfig.get_path(name) for name in ("purelib", "platlib")}, sep="\n")' \
    >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
  "$venv/bin/python" "$root/tests/gpu/needed.py" >"$venv/needed.txt"
  "$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check "${wheels[@]}" -r "$venv/needed.txt" >&2
  python=$venv/bin/python
fi

export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0} HF_HUB_OFFLINE=1 MLFLOW_TRACKING_URI=off TOKENIZERS_PARALLELISM=false
unset DVC_STAGE DVC_ROOT DVC_EXP_NAME
exec "$python" "$root/tests/gpu/measure.py" "${arguments[@]}"
