#!/bin/bash
# Trains the embedded model further on one GPU in eight minutes, without a network:
#
#     recipes/nano/gpu.sh ARCHIVE OUT [MINUTES] [WHEELS]
#
# ARCHIVE is made by python -m recipes.nano.pack. OUT gets the weights (start, images, last) and a log, every minute, so that
# whatever happens later is not lost. The machine has torch, numpy, Pillow, safetensors, huggingface_hub and PyYAML. WHEELS
# is a folder with what it may lack, for each Python that it may have:
#
#     for python in 3.10 3.11 3.12 3.13; do
#         pip download --no-deps --only-binary :all: --python-version $python -d WHEELS pycocotools connected-components-3d
#     done
set -u
archive=$1 out=$2 minutes=${3:-8} wheels=${4:-}
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
archive=$(realpath "$archive")
if [ -n "$wheels" ]; then wheels=$(realpath "$wheels"); fi
exec > >(tee -a "$out/output.txt") 2>&1
date

export PYTHONPATH=$root/src:$root${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
# Workers keep memory for their next image instead of returning it to the system each time.
export MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_TOP_PAD_=67108864
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
imports='import cc3d, pycocotools.mask, yaml, safetensors, huggingface_hub, PIL, numpy'
if ! "$python" -c "$imports" 2> /dev/null && [ -n "$wheels" ]; then
    packages=$data/packages
    "$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" --target "$packages" \
        pycocotools connected-components-3d || {
        # Without pip: a wheel is an archive. Those for another Python are left alone.
        tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
        for wheel in "$wheels"/*"$tag"*.whl; do
            "$python" -m zipfile -e "$wheel" "$packages"
        done
    }
    export PYTHONPATH=$PYTHONPATH:$packages  # last, so that what the machine has comes first
fi
"$python" -c "$imports" || exit 1
"$python" -c 'import torch; print(torch.__version__, torch.cuda.is_available())'

"$python" -m zipfile -e "$archive" "$data/sources" || exit 1
workers=$(($(nproc) > 2 ? $(nproc) - 2 : 1))
deadline=$(awk "BEGIN { print $minutes + 1.2 }")
cd "$root" || exit 1
timeout --signal=TERM --kill-after=20 "$(awk "BEGIN { print int(60 * $minutes + 100) }")" \
    "$python" -m recipes.nano.gpu_train "$data/sources" --out "$out" --minutes "$minutes" --deadline "$deadline" \
    --workers "$workers" ${GPU_TRAIN_OPTIONS:-}
status=$?
date
ls -l "$out"
exit $status
