#!/usr/bin/env bash
# Programs that tests need beside what pip installs, with apt-get where that is possible: clang-19, for the Metal
# emulator; chromium, for the HTML page. What is there already stays.
#
#     scripts/install_tools.sh clang-19 chromium
set -euo pipefail

say() { printf 'dev.sh: %s\n' "$*" >&2; }

is_there() {
  case $1 in
    # clang prints a path if it has the file, and the bare name otherwise
    clang-19) [ -e "$(clang-19 -print-file-name=libclang_rt.asan-x86_64.a 2>/dev/null)" ] ;;
    chromium)
      command -v chromedriver >/dev/null 2>&1 &&
        { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null 2>&1 ;;
    *) say "no such tool: $1"; exit 2 ;;
  esac
}

arguments_of() {
  case $1 in
    clang-19) echo clang-19 libclang-rt-19-dev ;;
    chromium) echo --no-install-recommends chromium chromium-driver ;;
  esac
}

install() {
  local as_root=""
  [ "$(id -u)" = 0 ] || as_root="sudo -n"
  if ! command -v apt-get >/dev/null 2>&1 || ! $as_root true 2>/dev/null; then
    say "some tests need $1, which only root can install: apt-get install $(arguments_of "$1")"
    return
  fi
  say "installing $1"
  $as_root apt-get update -qq
  # shellcheck disable=SC2046 # an argument for each word
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(arguments_of "$1") >/dev/null
}

for tool in "$@"; do is_there "$tool" || install "$tool"; done
