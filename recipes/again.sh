#!/usr/bin/env bash
# again.sh COMMAND...: runs it until it is done, however often it is stopped or dies.
#
# tsuzuri's exit codes: 0 done; 2 what was given cannot be used; 42 saved, start me again; any other
# is a fault, and at most 10 of those in a row are taken for bad luck.
set -uo pipefail
faults=0
while true; do
  "$@" && exit 0
  code=$?
  case $code in
    2) exit 2 ;;
    42) faults=0 ;;
    *) faults=$((faults + 1)) ;;
  esac
  ((faults < 10)) || exit "$code"
  echo "again.sh: exit code $code, starting again" >&2
  sleep "${AGAIN_SECONDS:-5}"
done
