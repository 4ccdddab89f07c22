#!/usr/bin/env bash
# bench/gpu.sh DIR: everything that needs a GPU, in under 9 minutes: the gpu tests, the benchmarks with their peers, one
# profile. Every step has a time limit of its own; a failed or slow one does not stop the next. Results go to DIR.
# Exit status: that of the gpu tests; 2 without a GPU.
set -uo pipefail
if [[ $# -ne 1 ]]; then
    echo "usage: bench/gpu.sh DIR" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
log=$out/log.txt
: >"$log"

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "bench/gpu.sh: no GPU: torch sees no CUDA device; nothing was run" | tee -a "$log" >&2
    exit 2
fi

# step NAME SECONDS COMMAND...: returns the command's status, 124 if it ran out of time.
step() {
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    echo "== $name: $*" | tee -a "$log"
    timeout --kill-after=10 "$limit" "$@" >>"$log" 2>&1
    status=$?
    echo "== $name: status $status after $((SECONDS - start)) s" | tee -a "$log"
    return $status
}

bench=("$python" -m pytest bench --benchmark-only --device cuda -q)
step tests 190 "$python" -m pytest -m gpu -q
tests=$?
step benchmarks 150 "${bench[@]}" -k "not compile" --benchmark-json="$out/bench.json"
step profile 40 env PYTHON="$python" profiles/run.sh --backend fused --device cuda --out "$out"
step compile 120 "${bench[@]}" -k "gradient and M64 and K10 and (compile or reference)" --compile \
    --benchmark-json="$out/compile.json"
results=()
for result in "$out/bench.json" "$out/compile.json"; do
    if [[ -s $result ]]; then results+=("$result"); fi
done
if [[ ${#results[@]} -gt 0 ]]; then
    "$python" bench/table.py "${results[@]}" --markdown --plot "$out/plot.png" | tee "$out/table.md"
fi
exit $tests
