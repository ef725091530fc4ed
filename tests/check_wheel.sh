#!/usr/bin/env bash
# Does the wheel do the whole job? It is installed into a clean environment and used in an empty folder, both outside the
# repository: tests/check_wheel.sh dist/*.whl   (PYTHON=python3.12: with that Python)
set -euo pipefail
wheel=$(realpath "$1")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"${PYTHON:-python3}" -m venv "$place/env"
"$place/env/bin/python" -m pip install --quiet --no-compile "${wheel}[cpu,demo]"
mkdir "$place/empty"
cd "$place/empty"
unset PYTHONPATH
export PATH="$place/env/bin:$PATH" PS4='$ '
set -x

python -c 'from pathlib import Path; from passl_densecl.cli.demo import build_image_set; build_image_set(Path("photos"))'
densecl --version
densecl config cp small/densecl_r18 mine.yaml
densecl train mine.yaml photos/train --check > resolved.yaml
# Four steps; the validation tiles are the smaller set. The report is written below.
settings=(epochs=2 model.queue_len=auto model.loss_lambda_warmup_epochs=0 name=run report=false)
densecl train small/densecl_r18 photos/val --devices cpu:2 "${settings[@]}"
densecl extract output/run --output backbone.pdparams
densecl eval knn output/run --train photos/train --val photos/val --json knn.json
pictures=(photos/val/cat/*.jpg)
densecl plot match output/run "${pictures[0]}" --output match.png
densecl report output/run
densecl export output/run exported

for file in mine.yaml resolved.yaml backbone.pdparams knn.json match.png output/run/report.html; do
  test -s "$file"
done
test -n "$(ls exported)"
