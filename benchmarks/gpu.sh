#!/usr/bin/env bash
# Everything that a GPU is wanted for, in one call of under 9 minutes: the gpu tests, then the benchmarks.
#
#   benchmarks/gpu.sh COCO [RESULTS]
#
# COCO holds val2017/ and annotations/instances_val2017.json. Each line of JSON is kept in RESULTS (benchmarks/results)
# under the name of its benchmark; one that fails or takes too long leaves what was there, and the others go on. Commit
# first: the results say whether the code was changed after its commit. What no time is left for is named; the most
# wanted comes first. DEVICE=cpu SMALL=1 tries the script itself.
set -uo pipefail
cd "$(dirname "$0")/.."

coco=${1:?give a folder with val2017/ and annotations/instances_val2017.json}
results=${2:-benchmarks/results}
device=${DEVICE:-cuda}
precision=bf16-mixed
[[ $device == cuda ]] || precision=32-true  # bfloat16 is slow on most processors
python=${PYTHON:-.venv/bin/python}
failed=0
end=$((SECONDS + ${LIMIT:-530}))
mkdir -p "$results"

# left SECONDS: as many of them as there are until the end
left() { echo $(($1 < end - SECONDS ? $1 : end - SECONDS)); }

# keep NAME SECONDS COMMAND...: the last line that it prints into NAME_DEVICE.json
keep() {
    local file="$results/$1_$device.json" limit line
    limit=$(left "$2")
    shift 2
    echo "+ $*" >&2
    if ((limit > 0)) && line=$(timeout "$limit" "$python" "$@" | tail -n 1) && [[ $line == \{* ]]; then
        echo "$line" | tee "$file"
    else
        echo "failed, or took more than $limit s: $*" >&2
        failed=1
    fi
}

if [[ -n ${SMALL:-} ]]; then
    large=(--size 96 128 --batch 2 --steps 1 --rounds 1) small=(--size 64 64 --batch 2 --steps 1 --rounds 1)
    spots=(--size 96 128 --batch 2 --rounds 1) images=(--images 1 --rounds 1)
else
    large=(--size 800 1344 --batch 12 --steps 10 --rounds 1) small=(--size 128 128 --batch 12 --steps 30 --rounds 1)
    spots=(--size 800 1344 --batch 12 --rounds 20) images=(--images 6 --rounds 10)
fi

step=(benchmarks/train_step.py --coco "$coco" --precision "$precision" --device "$device")
if [[ $device == cuda ]]; then
    timeout "$(left 150)" "$python" -m pytest -q -m gpu || failed=1
    keep train_step_800_compiled 120 "${step[@]}" "${large[@]}" --compile auto
    keep train_step_128_graphs 100 "${step[@]}" "${small[@]}" --compile graphs
    keep train_step_128_compiled 100 "${step[@]}" "${small[@]}" --compile auto
fi
keep train_step_800 120 "${step[@]}" "${large[@]}"
keep train_step_128 70 "${step[@]}" "${small[@]}"
keep hot_spots 70 benchmarks/hot_spots.py "${spots[@]}" --device "$device"
keep inference 110 benchmarks/inference.py --coco "$coco" "${images[@]}" --device "$device"
exit $failed
