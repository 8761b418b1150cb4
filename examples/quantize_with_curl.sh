#!/usr/bin/env bash
# The main job with nothing but curl. Octet must be running: `make run`.
#
#   examples/quantize_with_curl.sh FOLDER [URL]
#
# FOLDER holds what `python -m examples.digits FOLDER` wrote; the quantized artifact is put beside it.
set -euo pipefail

folder=$1
url=${2:-${OCTET_URL:-http://127.0.0.1:8000}}
curl() { command curl --fail-with-body --silent --show-error "$@"; }
# Picks one text member out of a flat JSON answer, without jq.
member() { sed -E "s/.*\"$1\": ?\"([^\"]*)\".*/\1/" <<<"$2"; }

# Follows a job's events until it is final, and fails unless it succeeded.
follow() {
    local event state=unknown
    while IFS= read -r event; do
        [[ $event == data:* ]] || continue
        state=$(sed -E 's/.*"state": ?"([a-z]+)".*/\1/' <<<"$event")
        sed -E 's/.*"percent": ?([0-9.]+), ?"step": ?"([^"]*)".*/\1 %  \2/' <<<"$event"
    done < <(curl --no-buffer "$url/v1/jobs/$1/events")
    [[ $state == succeeded ]] || { echo "job $1: $state" >&2; curl "$url/v1/jobs/$1" >&2; exit 1; }
}

# 1. Upload the model: the text fields first, then the file. An import job reads it in the sandbox.
model=$(curl -F name=digits -F file=@"$folder/digits.pt2" "$url/v1/models")
follow "$(member import_job "$model")"

# 2. Upload the rows. The raw bytes as the body do as well.
calibration=$(curl --data-binary @"$folder/calibration.npz" -H 'Content-Type: application/octet-stream' \
    "$url/v1/datasets?name=digits-calibration&filename=calibration.npz")
follow "$(member import_job "$calibration")"
evaluation=$(curl -F name=digits-evaluation -F file=@"$folder/evaluation.npz" "$url/v1/datasets")
follow "$(member import_job "$evaluation")"

# 3. Ask for the int8 variant and watch it being made.
job=$(curl -H 'Content-Type: application/json' "$url/v1/jobs" -d '{
    "kind": "quantize", "model": "digits",
    "calibration": "digits-calibration", "evaluation": "digits-evaluation",
    "recipe": {"technique": "ptq_static", "calibration_rows": 300}}')
id=$(member id "$job")
follow "$id"
variant=$(member variant "$(curl "$url/v1/jobs/$id")")

# 4. The proof, and the artifact itself.
curl "$url/v1/models/digits/variants/$variant/report" -o "$folder/report.json"
curl "$url/v1/models/digits/variants/$variant/artifact" -o "$folder/digits-$variant.onnx"

# 5. Ask both variants: one blank image, as nested lists.
row=$(printf '0,%.0s' {1..16}) row="[${row%,}]"
image=$(printf "$row,%.0s" {1..16})
for form in float32 "$variant"; do
    curl -H 'Content-Type: application/json' "$url/v1/models/digits/predict?variant=$form" \
        -d "{\"inputs\": {\"x\": [[[${image%,}]]]}}"
    echo
done

# 6. What Prometheus will see.
curl "$url/metrics" | grep '^octet_request_duration_seconds_count'
