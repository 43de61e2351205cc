#!/usr/bin/env bash
# Check types: tests/types.sh [FOLDER ...], by default the folders that are strict.
# kernels/ and launch/ are checked as medssr_dist.kernels and medssr_dist.launch, the names by which they are imported.
# mypy finds them by these names in a folder of links that lasts as long as the check.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
python=${VENV:-.venv}/bin/python
[[ $python = /* ]] || python=$repo/$python
links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
mkdir "$links/medssr_dist"
ln -s "$repo"/medssr_dist/* "$repo/kernels" "$repo/launch" "$links/medssr_dist/"
packages=()
for folder in "${@:-data run config voting inference kernels}"; do
    for name in $folder; do packages+=(-p "medssr_dist.$name"); done
done
cd "$links"
"$python" -m mypy --config-file "$repo/pyproject.toml" --cache-dir "$repo/.mypy_cache/packages" "${packages[@]}"
