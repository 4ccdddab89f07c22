#!/usr/bin/env bash
# bench/gpu.sh --seconds N DIR [--dry-run]: everything that needs a GPU, the most important first; see gpu.py.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "$@"
