#!/usr/bin/env bash
# profiles/run.sh [task] [--backend auto|reference|fused] [--bundle DIR] [--out DIR] [--ncu] ...: see --help.
# With Nsight Systems on the PATH and a GPU: a report with the NVTX ranges and a table of them. With --ncu: Nsight
# Compute of one sampler kernel. Otherwise torch's profiler: a Chrome trace and a table; no GPU needed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
out=results ncu=false previous=
for argument in "$@"; do
    if [[ $previous == --out ]]; then out=$argument; fi
    case $argument in
    --out=*) out=${argument#--out=} ;;
    --ncu) ncu=true ;;
    -h | --help) exec "$python" "$here/decisions.py" --help ;;
    esac
    previous=$argument
done
gpu() { "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }
need() {
    command -v "$1" >/dev/null || { echo "profiles/run.sh: $1 is not on the PATH" >&2; exit 2; }
    gpu || { echo "profiles/run.sh: $1 needs a GPU, torch sees none" >&2; exit 2; }
}
mkdir -p "$out"
stem=$out/profile-$(date +%Y%m%d-%H%M%S)
if $ncu; then
    need ncu
    # Two launches, past those of the warm-up; graphs are profiled kernel by kernel.
    # The clocks of a shared machine are left as they are.
    exec ncu --clock-control none --set full --graph-profiling node --kernel-name 'regex:sampler_' --launch-skip 20 --launch-count 2 \
        --export "$stem" --force-overwrite --print-summary per-kernel \
        "$python" "$here/decisions.py" "$@" --steps 2 --external
elif command -v nsys >/dev/null && gpu; then
    nsys profile --trace=cuda,nvtx --cuda-graph-trace=node --sample=none --force-overwrite=true --output="$stem" \
        "$python" "$here/decisions.py" "$@" --external
    exec nsys stats --report nvtx_sum --report cuda_gpu_kern_sum "$stem.nsys-rep"
else
    exec "$python" "$here/decisions.py" "$@"
fi
