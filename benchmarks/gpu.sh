#!/usr/bin/env bash
# The first minutes on a machine with a GPU: what is wanted most comes first, and each answer is
# written when it is known.
#
#   [COMMIT=HASH] [WHEELS=FOLDER] benchmarks/gpu.sh COCO [RESULTS]
#
# COCO holds val2017/ and annotations/instances_val2017.json; a hundred images are enough. RESULTS
# (benchmarks/results) gets a file of one line of JSON for each benchmark, results.jsonl and
# kernels.json of gpu_probe.py, and log.txt. A bare machine is enough: torch, torchvision, lightning,
# tensorboard, matplotlib and scipy; the package needs no installation and no .git. WHEELS: a folder
# of wheels of the rest, where that is missing there (3 MB): antlr4-python3-runtime hydra-core
# markdown-it-py mdurl omegaconf platformdirs pycocotools pygments rich urllib3.
# COMMIT: of this code, for the results, where there is no .git.
#
# Every step has its own limit in seconds; LIMIT=530 is that of all. One that fails or takes too long
# is named, and the others go on. STEPS="probe loop" runs these alone. DEVICE=cpu SMALL=1 tries the
# script itself, and SLOW=5 gives each step five times its limit.
set -uo pipefail
: "${1:?give a folder with val2017/ and annotations/instances_val2017.json}"
coco=$(realpath "$1") || exit
results=$(realpath -m "${2:-$(dirname "$0")/results}") || exit
cd "$(dirname "$0")/.." || exit
device=${DEVICE:-cuda}
precision=bf16-mixed
[[ $device == cuda ]] || precision=32-true # bfloat16 is slow on most processors
own=.venv/bin/python
[[ -x $own ]] || own=python3
python=${PYTHON:-$own}
steps=" ${STEPS:-probe torchvision loop tests graphs inference hot_spots} "
failed=0
end=$((SECONDS + ${LIMIT:-530}))
mkdir -p "$results" || exit
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export MASKRCNN_LIT_COMMIT=${COMMIT:-${MASKRCNN_LIT_COMMIT:-}}

if [[ -n ${WHEELS:-} ]]; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl ||
        exit
    PYTHONPATH="$PYTHONPATH:$site"
fi

# run NAME SECONDS COMMAND...: with a limit, and within that of all
run() {
    local name=$1 limit=$(($2 * ${SLOW:-1}))
    limit=$((limit < end - SECONDS ? limit : end - SECONDS))
    shift 2
    if ((limit <= 0)); then
        echo "no time is left for $name" >&2
        return 1
    fi
    echo "+ [$SECONDS s] $*" >&2
    timeout "$limit" "$@" && return
    echo "$name failed, or took more than $limit s" >&2
    return 1
}

# keep NAME SECONDS COMMAND...: the last line of JSON that it prints, in NAME_DEVICE.json
keep() {
    local file="$results/$1_$device.json" lines
    lines=$(run "$@") || failed=1
    lines=$(grep '^{' <<<"$lines" | tail -n 1)
    [[ -z $lines ]] || tee "$file" <<<"$lines"
}

wanted() { [[ $steps == *" $1 "* ]]; }

if [[ -n ${SMALL:-} ]]; then
    large=(--size 64 96 --batch 1) small=(--size 64 64 --batch 1) few=(--steps 1)
    tiny=(model=tiny backbone=resnet18)
    loop=(--steps 2 --warmup 1 --compile off --workers 0) images=(--images 1 --rounds 1)
    spots=(--size 96 128 --batch 2 --rounds 1)
else
    large=(--size 800 1344 --batch 16) small=(--size 128 128 --batch 64) few=(--steps 30) tiny=()
    loop=(--steps 100 --warmup 20) images=(--images 6 --rounds 10)
    spots=(--size 800 1344 --batch 12 --rounds 20)
fi
step=("$python" benchmarks/train_step.py --coco "$coco" --precision "$precision" --device "$device")
probe=("$python" benchmarks/gpu_probe.py --coco "$coco" --out "$results" --device "$device")

main() {
    # Ours, first of all: is it right, does it compile, how fast is it, and where is the time?
    if wanted probe; then
        run probe 240 "${probe[@]}" "${large[@]}" "${few[@]}" "${tiny[@]}" || failed=1
    fi
    # torchvision's model on the same images: the ratio.
    if wanted torchvision; then
        keep torchvision_800 70 "${step[@]}" "${large[@]}" --steps 8 --model torchvision
    fi
    # The same with the real loader, through Lightning; what the probe has compiled serves it too.
    if wanted loop; then
        keep train_loop 110 "$python" benchmarks/train_loop.py --coco "$coco" "${large[@]}" \
            "${loop[@]}" --device "$device" "${tiny[@]}"
    fi
    # The tests that need a GPU, without those that compile for minutes. Other files are not read:
    # that alone takes half a minute.
    if wanted tests && [[ $device == cuda ]]; then
        mapfile -t files < <(grep -rlE 'mark\.gpu\b' tests --include='test_*.py')
        run tests 80 "$python" -m pytest -q --tb=short -p no:cacheprovider -m gpu \
            -k "not compile and not always" "${files[@]}" || failed=1
    fi
    # Small images, where the host's launches are the time: each region as a CUDA graph.
    if wanted graphs && [[ $device == cuda ]]; then
        keep train_step_128_graphs 120 "${step[@]}" "${small[@]}" "${few[@]}" --rounds 1 \
            --compile graphs
    fi
    if wanted inference; then
        keep inference 110 "$python" benchmarks/inference.py --coco "$coco" "${images[@]}" \
            --device "$device"
    fi
    if wanted hot_spots; then
        keep hot_spots 70 "$python" benchmarks/hot_spots.py "${spots[@]}" --device "$device"
    fi
    return $failed
}

main 2>&1 | tee "$results/log.txt"
exit "${PIPESTATUS[0]}"
