#!/usr/bin/env bash
# bench/results.sh WHAT [FLAG...]: make files of bench/results again, see bench/results/README.md. WHAT: evaluation, study,
# settings, models, benchmark, base-policies LIST.json, damaged-models LIST.json (bench/README.md) or paper. Every command
# gets the flags. Latencies need an otherwise idle machine. The same command resumes a stopped one, except evaluation, models
# and benchmark. SCRATCH is the folder of the runs, RESULTS that of the files.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
scratch=${SCRATCH:-results/bench}
results=${RESULTS:-bench/results}
task=hopper-medium

# shown FILE COMMAND...: append the command and its output to FILE, and print them.
shown() {
    local file=$1
    shift
    { echo "\$ python $*" && "$python" "$@" && echo; } | tee -a "$file"
}

evaluation() {
    local page=$scratch/evaluation.txt eval=(-m fastdwm.eval "$task" --out "$scratch")
    rm -f "$page"
    shown "$page" "${eval[@]}" "$@"
    for world in diffusion meanflow mlp; do
        shown "$page" "${eval[@]}" --episodes 50 --world "$world" "$@"
    done
    shown "$page" "${eval[@]}" --episodes 10 --backend reference "$@"
    shown "$page" "${eval[@]}" --world meanflow --episodes 1 --deadline-ms 5 --itpo.inner-steps 8 \
        --itpo.action-step 0.0015 "$@"
    mv "$page" "$results/$task-evaluation.txt"
}

study() {
    "$python" -m fastdwm.study "$task" --out "$scratch/study" "$@"
    for kind in md csv png; do cp "$scratch/study/study.$kind" "$results/$task-study.$kind"; done
}

# Vary each axis of the default, then every other setting of a decision around the default.
settings() {
    local study=(-m fastdwm.study "$task" --worlds diffusion) page=$scratch/settings.md
    local point=(--horizons 8 --particles 2 --inner-steps 1 --no-confirm)
    echo "# $task: the settings that were tried" >"$page"
    setting "$page" --horizons 8 5 3 1 0 --particles 2 1 4 16 --inner-steps 1 2 4 --max-deviations 0.03 0.015 0.06 "$@"
    for other in "action-step 0.003" "action-step 0.03" "reset decision" "terminal-value mean" "terminal-value first" \
        "termination mask" "termination soft"; do
        read -r name value <<<"$other"
        setting "$page" "${point[@]}" "--itpo.$name" "$value" "$@"
    done
    setting "$page" --itpo.optimiser sgd "${point[@]}" --inner-lrs 2e-5 5e-6 1e-5 4e-5 8e-5 "$@"
    setting "$page" --itpo.optimiser adam "${point[@]}" --inner-lrs 1e-5 1e-6 1e-7 "$@"
    mv "$page" "$results/$task-settings.md"
}

# setting PAGE FLAG...: run a study in a folder named after its flags, and append its table to PAGE.
setting() {
    local page=$1 out
    shift
    out=$scratch/settings/$(tr -c 'a-z0-9.\n-' '_' <<<"${*#--}")
    "$python" "${study[@]}" --out "$out" "$@"
    { echo && cat "$out/study.md"; } >>"$page"
}

models() {
    local page=$scratch/models.txt
    rm -f "$page"
    shown "$page" -m fastdwm.report models "$task" --out "$scratch" "$@"
    mv "$page" "$results/$task-models.txt"
}

benchmark() {
    for threads in 1 2; do
        "$python" -m pytest bench --benchmark-only --compile --device cpu --threads "$threads" \
            --benchmark-json "$scratch/cpu-$threads.json" "$@"
    done
    "$python" bench/table.py "$scratch"/cpu-[12].json --markdown >"$scratch/cpu.md"
    mv "$scratch/cpu.md" "$results/benchmarks-cpu.md"
}

base-policies() {
    for stage in run show; do
        "$python" bench/base_policies.py "$stage" "$@" --out "$scratch/base-policies" --pages "$results"
    done
}

damaged-models() {
    "$python" bench/base_policies.py damage "$@" --out "$scratch/base-policies" --pages "$results"
}

# Make the paper's tables from every shipped bundle: the full page stays in SCRATCH/paper, its rows go to paper.csv.
paper() {
    local tasks
    tasks=$("$python" -c "from fastdwm.shipped import shipped; print(*shipped())")
    # shellcheck disable=SC2086
    "$python" -m fastdwm.sweep --stages eval --tasks $tasks --out "$scratch/sweep" "$@"
    "$python" -m fastdwm.report paper "$scratch/sweep" --out "$scratch/paper"
    cp "$scratch/paper/paper.csv" "$results/"
}

what=${1:-}
case $what in
evaluation | study | settings | models | benchmark | base-policies | damaged-models | paper)
    shift
    mkdir -p "$scratch" "$results"
    "$what" "$@"
    ;;
*)
    echo "usage: bench/results.sh evaluation|study|settings|models|benchmark|base-policies|damaged-models|paper [FLAG...]" >&2
    exit 2
    ;;
esac
