#!/usr/bin/env bash
# Fill the open cells of the ledger on one GPU, the most valuable first; call it again and again.
#
#   benchmarks/gpu.sh --data FOLDER --out FOLDER [--budget MINUTES] [--parallel N] [--revision REV] [--python PY]
#                     [--phases "NAME ..."] [--protocol paper] [--device cuda] [--cache FOLDER]
#
# Each call ends after the budget (9 minutes) and the next goes on where it ended: finished cells are skipped, an
# unfinished training goes on from its state in --cache, where trained networks are kept too. The results are
# FOLDER/table1.jsonl and FOLDER/speed_*.jsonl, which begin as what benchmarks/results and the cache hold; nothing
# else is written to --out. Copy them to benchmarks/results and run `make ledger`. Works from the sources: PY needs
# the dependencies, not the package. N processes share the GPU, each with its images on it; bf16 is the protocol's.
#
# Phases: speed_quick mini84 mini224 others84 cifar10 cifar100 speed; `scenes` needs no data, to try this out.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
data=${TORCHDOCTOR_DATA:-} out='' budget=9 parallel=4 revision='' python=python3
phases='speed_quick mini84 mini224 others84 cifar10 cifar100 speed'
protocol=paper device=cuda cache="$root/runs/gpu"
while (($#)); do
    case $1 in
    --data | --out | --budget | --parallel | --revision | --python | --phases | --protocol | --device | --cache)
        (($# > 1)) || { echo "$1: a value is missing" >&2 && exit 2; }
        declare "${1#--}=$2"
        shift 2
        ;;
    *) echo "$1 is unknown; see the head of $0" >&2 && exit 2 ;;
    esac
done
[[ $out ]] || { echo "--out is missing: the folder of the results" >&2 && exit 2; }
[[ $data ]] || data=$root/data # `scenes` needs none
absolute() { (cd "$(dirname "$1")" && echo "$PWD/$(basename "$1")"); }
[[ $python != */* ]] || python=$(absolute "$python")
[[ ! -d $data ]] || data=$(absolute "$data")

first='vgg16 resnet50'
others='alexnet senet34 wideresnet28_10 resnext50 densenet121 simplenet_v1 efficientnetv2_s googlenet xception'
others+=' mobilenet_v2 inception_v3 shufflenet_v2 squeezenet mnasnet'
arguments_of() {
    case $1 in
    mini84) echo "--datasets mini_imagenet30 --architectures $first" ;;
    mini224) echo "--datasets mini_imagenet30 --architectures $first --image-sizes 224" ;;
    others84) echo "--datasets mini_imagenet30 --architectures $others" ;;
    cifar10 | cifar100) echo "--datasets $1 --architectures $first $others" ;;
    scenes) echo "--datasets scenes --architectures small_resnet --seeds 0" ;;
    *) echo "phase $1 is unknown; see the head of $0" >&2 && return 2 ;;
    esac
}
for phase in $phases; do
    [[ $phase == speed* ]] || arguments_of "$phase" >/dev/null
done

mkdir -p "$out" "$cache/results"
out=$(cd "$out" && pwd) cache=$(cd "$cache" && pwd)
cd "$root"
export PYTHONPATH="$root/src:$root${PYTHONPATH:+:$PYTHONPATH}"
minutes=${budget%.*} part=${budget#"${budget%.*}"}
deadline=$((SECONDS + 60 * ${minutes:-0} + 60 * 10#$(printf '%-.2s' "${part#.}00") / 100))
threads=$(($(nproc) / parallel))
files='table1.jsonl speed_diagnosis.jsonl speed_treatment.jsonl'

# Gather the lines of several folders in the last of them; a line cut off by a kill stays a line of its own.
gather() {
    local file folder sources
    for file in $files; do
        sources=()
        for folder in "$@"; do
            if [[ -s $folder/$file ]]; then sources+=("$folder/$file"); fi
        done
        ((${#sources[@]})) || continue
        awk '!seen[$0]++' "${sources[@]}" >"$cache/gathered" && cp "$cache/gathered" "${!#}/$file"
    done
}

left() { echo $((deadline - SECONDS)); }

# speed PROGRAM WORD ARGUMENTS...: time something once; a line with WORD says that it was.
speed() {
    local program=$1 word=$2 file="$out/speed_$1.jsonl"
    shift 2
    if grep -qs "$word.*\"device\": \"$device\"" "$file"; then return 0; fi
    if (($(left) < 30)); then return 0; fi
    timeout "$(left)" "$python" "benchmarks/speed/$program.py" --device "$device" --out "$file" "$@" ||
        echo "benchmarks/speed/$program.py was not finished"
}

# Run all phases with one shard of their cells; no worker waits for another.
worker() {
    local phase dataset child=''
    trap '[[ $child ]] && kill -TERM "$child" && wait "$child"; exit 143' TERM
    for phase in $phases; do
        if [[ $phase == speed* ]] || (($(left) < 1)); then continue; fi
        read -r _ dataset _ <<<"$(arguments_of "$phase")"
        if [[ $dataset != scenes && ! -d $data/$dataset ]]; then
            if (($1 == 0)); then echo "$phase is left out: $data/$dataset is not there"; fi
            continue
        fi
        # shellcheck disable=SC2046
        # Trainings stop by themselves in time; what else might not is stopped from outside.
        timeout -k 40 $(($(left) + 5)) "$python" benchmarks/paper/table1.py --data "$data" --protocol "$protocol" --device "$device" \
            --shard "$1/$parallel" --threads "$((threads > 0 ? threads : 1))" --resident --checkpoints \
            --cache "$cache" --results "$out" --revision "$revision" \
            --budget "$(($(left) / 60)).$(printf '%02d' $(($(left) % 60 * 100 / 60)))" \
            $(arguments_of "$phase") &
        child=$!
        wait "$child" || echo "worker $1, $phase: ended with $?"
    done
}

gather benchmarks/results "$cache/results" "$out"
trap 'gather "$out" "$cache/results"' EXIT
if [[ " $phases " == *' speed_quick '* ]]; then
    speed diagnosis resnet18 --quick
    speed treatment resnet18 --quick
fi
workers=()
trap 'kill -TERM "${workers[@]}"; wait; exit 143' TERM INT
for ((number = 0; number < parallel; number++)); do
    worker "$number" &
    workers+=($!)
done
wait
trap - TERM INT
if [[ " $phases " == *' speed '* ]]; then # alone: other processes would share the GPU
    speed diagnosis inception_v3
    speed treatment inception_v3
fi
wc -l "$out"/*.jsonl 2>/dev/null || echo "no results yet"
