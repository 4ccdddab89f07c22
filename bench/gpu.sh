#!/usr/bin/env bash
# bench/gpu.sh first|second DIR [--dry-run]: run everything that needs a GPU, in two calls of nine minutes; see gpu.py.
exec "${PYTHON:-python}" "$(dirname "$0")/gpu.py" "$@"
