#!/usr/bin/env bash
# The one entry point, on a fresh macOS or Linux machine; ./dev.sh --help lists the commands.
# Works with bash 3.2, which is what macOS ships.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

UV_VERSION=0.13.9
VENV=.venv
PY=$VENV/bin/python
unset VIRTUAL_ENV PYTHONHOME       # another environment that happens to be active is not ours
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"

usage() {
  cat <<'TEXT'
usage: ./dev.sh COMMAND

  demo [IMAGE]                 run the demo of both packages into demo-output/ and compare the results
  demo train                   the same for the training demo: loss curves of both in one picture
  test [--all] [pytest args]   check, then every test suite; --all adds the long tests
  check                        ruff check, ruff format --check, mypy; requirements/ against pyproject.toml; the site;
                               check-files
  check-files                  workflows, the other files that GitHub reads, and shell scripts
  lock [--upgrade]             export the dependency groups of pyproject.toml to requirements/ anew
  docs                         build the site into site/; every warning is an error
  build [PACKAGE]              into dist/: sdists, and wheels from them
  check-wheel FILE...          whether sdists and wheels may be published
  mlx-wheel WHEEL              doctor on a wheel of natten-mlx with each release of MLX that it is for, and the oldest
  macos-wheels [--twice]       on Linux, wheels for macOS: built and checked, not for publishing
  gate [WHEEL...] [pytest args]
                               build and check wheels, unless some are given, and run every suite on them in an
                               environment that cannot see the packages' sources
  bench [pytest args]          both packages on the problems of `natten-mps bench`
  bench --guard [--write]      whether the CPU kernels have become slower, or faster, than a committed table says
  metal probe|doctors|suites   on a Mac: whether Metal runs at all, both doctors, every suite on Metal itself
  clients [pytest args]        real packages that call NATTEN or 0.3, unmodified, on ours
  upstream [VERSION...] [pytest args]
                               NATTEN's own tests of its releases, unmodified, on natten-mps and a CPU (long)
  upstream signatures          read every release's parameters anew, and compare with the committed table
  torch VERSION [pytest args]  the tests whose answers depend on torch, on a release of it (VERSION as in 2.9.0;
                               `newest` is what the index has, `nightly` what TORCH_NIGHTLY_INDEX has)
  mlx VERSION [pytest args]    doctor, and the tests whose answers depend on MLX, on a release of it with natten-mlx built
                               for it (VERSION as in 0.31.2, `oldest` or `newest`)

Each command first sets up what it needs: uv (into .tools/ unless it is installed), the workspace in .venv/ (for
`clients`, .venv-clients/ and two more; for `torch` and `mlx`, .venv-torch-VERSION/ and .venv-mlx-VERSION/; for wheels,
.venv-wheels/), and on Linux a CPU build of torch. `upstream` keeps what it fetches in .upstream/. Where no CPU build of
a VERSION can be had, `torch` takes the index's own, with several GB of CUDA.
Nothing outside this folder is touched, except that the Metal emulator's tests need clang-19, and those of the HTML page
(--all) chromium, which `test` installs with apt-get where that is possible.
TEXT
}

say() { printf 'dev.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# --- set-up ------------------------------------------------------------------------------------------

find_uv() {
  if command -v uv >/dev/null 2>&1; then
    UV=$(command -v uv)
  else
    [ -x .tools/bin/uv ] || install_uv
    UV=$PWD/.tools/bin/uv
  fi
  export UV                        # the packaging test builds with the same uv
}

install_uv() {
  command -v python3 >/dev/null 2>&1 || die "found neither uv nor python3; install one of them and run this again"
  # Debian and Ubuntu ship python3 without ensurepip, and then `-m venv` fails half way.
  python3 -c 'import ensurepip, venv' 2>/dev/null || die "python3 cannot make virtual environments here;" \
    "run 'apt-get install python3-venv' (Debian, Ubuntu) or install uv, and run this again"
  say "installing uv $UV_VERSION into .tools/"
  python3 -m venv --clear .tools
  .tools/bin/python -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
}

# What files of requirements/ list, into the environment; nothing that is there already is taken out.
install_requirements() {           # arguments: FILE...
  local files=("${@/#/--requirements=requirements/}")
  find_uv
  if [ ! -x "$PY" ]; then
    say "setting up $VENV/ (the first time takes a while)"
    "$UV" venv --quiet --allow-existing "$VENV"
  fi
  "$UV" pip install --quiet --python "$PY" --require-hashes \
    --build-constraints requirements/build.txt "${files[@]/%/.txt}"
}

# Packages from the sources here, both unless named. What is compiled is compiled again where a source has changed.
install_packages() {
  [ $# -gt 0 ] || set -- natten-mps natten-mlx
  "$UV" pip install --quiet --python "$PY" --no-deps --build-constraints requirements/build.txt "${@/#/-epackages/}"
}

# The environment of the tools for wheels. The packages themselves are not in it.
set_up_wheels() {
  VENV=.venv-wheels
  PY=$VENV/bin/python
  install_requirements wheels
}

set_up() {                         # arguments: FILE... of requirements/
  install_requirements "$@"
  install_packages
  add_torch
}

# On Linux the requirements leave torch itself out (see pyproject.toml). In this order: what is there already; a CPU
# wheel in a folder that this machine's pip is set up with; PyTorch's own CPU builds through uv.
add_torch() {
  local torch pip
  [ "$(uname -s)" = Linux ] || return 0
  ! "$PY" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null || return 0
  torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/dev.txt)
  say "installing $torch (CPU) into $VENV/"
  # --no-compile: compiling all of torch ahead takes far longer than compiling what gets imported.
  for pip in .tools/bin/python python3; do
    "$pip" -m pip --python "$PY" install --quiet --no-index --no-deps --no-compile "$torch" >/dev/null 2>&1 || continue
    return
  done
  # --no-config: the workspace's override would turn this into a silent no-op.
  "$UV" pip install --no-config --quiet --python "$PY" --torch-backend cpu --no-deps "$torch"
}

# --- commands ----------------------------------------------------------------------------------------

check() {
  "$PY" -m ruff check .
  "$PY" -m ruff format --check .
  "$PY" -m mypy
  "$PY" scripts/lock.py --check
  docs
  check_files
}

# Nothing is fetched: the schemas come with check-jsonschema.
check_files() {
  local bin=${PY%/*} entry
  PATH="$PWD/$bin:$PATH" "$bin/actionlint"       # which gives the steps' scripts to shellcheck
  "$bin/zizmor" --quiet --offline --no-progress --strict-collection .github
  for entry in github-workflows:.github/workflows/*.yml github-issue-forms:.github/ISSUE_TEMPLATE/[!c]*.yml \
    github-issue-config:.github/ISSUE_TEMPLATE/config.yml dependabot:.github/dependabot.yml \
    citation-file-format:CITATION.cff; do
    # shellcheck disable=SC2086 # patterns, on purpose
    "$bin/check-jsonschema" --builtin-schema "vendor.${entry%%:*}" ${entry#*:}
  done
  if [ -x "$bin/shellcheck" ]; then
    "$bin/shellcheck" dev.sh .ci/run scripts/*.sh
  else
    say "shell scripts are not checked: shellcheck has no build for this machine"
  fi
}

# About five seconds. --quiet would hide warnings from --strict, too. The variable silences a note about mkdocs itself.
docs() { NO_MKDOCS_2_WARNING=1 "$PY" -m mkdocs build; }

run_tests() {
  check
  run_suites "$@"
}

run_suites() {
  # The Metal emulator's tests, which only x86-64 Linux runs; the page in a browser.
  if [ "$(uname -sm)" = "Linux x86_64" ] && [ -d tests-parity/metal_emulator ]; then scripts/install_tools.sh clang-19; fi
  case " $* " in *" --all "*) scripts/install_tools.sh chromium ;; esac
  # Two workers of one thread each: the suites are many small problems.
  OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" "$PY" -m pytest -n 2 --dist loadgroup --durations 10 "$@"
}

build_wheels() { "$PY" scripts/build_wheels.py "$@"; }
check_wheels() { "$PY" scripts/check_wheel.py "$@"; }

# What must hold before a release: the suites on the wheels, where the sources of the packages cannot be imported.
run_gate() {                       # arguments: WHEEL... (default: built and checked first), pytest's
  local wheels=() package
  while [[ ${1:-} == *.whl ]]; do wheels+=("$1"); shift; done
  if [ ${#wheels[@]} = 0 ]; then
    set_up_wheels
    build_wheels
    check_wheels dist/*
    wheels=(dist/*.whl)
  fi
  GATE=$(mktemp -d)
  trap 'rm -rf "$GATE"' EXIT
  mkdir "$GATE/wheels" "$GATE/checkout"
  cp "${wheels[@]}" "$GATE/wheels"
  # The rest of the checkout, which tests read; without those that look at the sources or build from them.
  git ls-files -z --cached --others --exclude-standard -- . ':!packages/*/src/*.py' ':!packages/*/src/*/_metal' \
    ':!shared-metal/natten_metal' ':!tests-parity/packaging' ':!tests-parity/test_house*' \
    ':!tests-parity/api/test_links.py' |
    tar --null -T - -cf - | tar -xf - -C "$GATE/checkout"
  VENV=$GATE/venv
  PY=$VENV/bin/python
  install_requirements dev
  # The resolver takes the wheels that fit this machine best.
  "$UV" pip install --quiet --python "$PY" --no-config --no-deps --no-index --find-links "$GATE/wheels" \
    natten-mps natten-mlx
  add_torch
  cd "$GATE/checkout"
  "$PY" scripts/check_installed.py
  for package in natten-mps natten-mlx; do
    "$VENV/bin/$package" doctor
    "$VENV/bin/$package" demo --out "$GATE/$package.png"
  done
  run_suites "$@"
}

run_demo() {
  local out=demo-output package
  mkdir -p "$out"
  for package in natten-mps natten-mlx; do
    ".venv/bin/$package" demo --array "$out/$package.npy" --out "$out/$package.png" "$@"
  done
  "$PY" scripts/compare_demo.py "$out/natten-mps.npy" "$out/natten-mlx.npy"
}

# Each group of clients has an environment of its own: they ask for different releases of the same packages.
run_clients() {
  local suite status=0
  for suite in clients-older clients clients-earlier; do
    VENV=.venv-$suite
    PY=$VENV/bin/python
    set_up "$suite"
    OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" "$PY" -m pytest "tests-clients/$suite" "$@" || status=$?
  done
  return $status
}

# The tests of a release, from NATTEN's repository: source distributions have none.
fetch_upstream_tests() {
  local repository=${NATTEN_REPOSITORY:-https://github.com/SHI-Labs/NATTEN} clone=.upstream/repository
  [ ! -d ".upstream/$1/tests" ] || return 0
  mkdir -p .upstream
  [ -d "$clone" ] || git clone --quiet --bare --filter=blob:none "$repository" "$clone"
  git -C "$clone" rev-parse --quiet --verify "v$1^{commit}" >/dev/null || die "NATTEN's repository has no release $1"
  mkdir -p ".upstream/$1"
  git -C "$clone" archive "v$1" tests | tar -x -C ".upstream/$1"
}

run_upstream() {
  local version status=0 versions=()
  while [[ ${1:-} =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]]; do versions+=("$1"); shift; done
  [ ${#versions[@]} -gt 0 ] || versions=(0.14.6 0.15.1 0.17.5 0.20.1 0.21.6)
  mkdir -p .upstream
  export NATTEN_UPSTREAM_RESULTS=$PWD/.upstream/results.tsv
  printf 'release\tpassed\tfailed\terrors\tskipped\ttime\n' >"$NATTEN_UPSTREAM_RESULTS"
  for version in "${versions[@]}"; do
    fetch_upstream_tests "$version"
    say "NATTEN $version's tests"
    NATTEN_UPSTREAM_VERSION=$version PYTHONPATH=tests-upstream "$PY" -m pytest -p natten_upstream -c /dev/null \
      --rootdir ".upstream/$version" ".upstream/$version/tests" -v --tb=short --show-capture=no -p no:cacheprovider "$@" || status=$?
  done
  column -t -s "$(printf '\t')" "$NATTEN_UPSTREAM_RESULTS"
  return $status
}

compare_signatures() {
  local table=tests-parity/compat/upstream_signatures.tsv folders
  folders=$("$PY" scripts/fetch_sdists.py .upstream/sdists "$UV" tool run --quiet pip)
  # shellcheck disable=SC2086 # one folder a line, without spaces
  "$PY" scripts/read_signatures.py $folders >.upstream/signatures.tsv
  diff "$table" .upstream/signatures.tsv || die "$table differs from the releases' source distributions"
  say "$table is what the source distributions say"
}

# A release of torch in place of the pinned one, with what that release asks for.
install_torch_release() {
  local wanted=torch pip options
  local is_it='import sys, importlib.metadata as m; sys.exit(m.version("torch").split("+")[0] != sys.argv[1])'
  ! "$PY" -c "$is_it" "$1" 2>/dev/null || return 0
  [[ $1 == n* ]] || wanted="torch==$1"
  say "installing $wanted into $VENV/"
  # --no-config: the workspace's override would leave torch out.
  options=(--no-config --quiet --python "$PY" --upgrade-package torch)
  if [ "$1" = nightly ]; then
    "$UV" pip install "${options[@]}" --prerelease allow --index "$TORCH_NIGHTLY_INDEX" "$wanted"
    return
  fi
  # In this order: a wheel in a folder that this machine's pip is set up with; PyTorch's own CPU builds; the index's.
  for pip in .tools/bin/python python3; do
    [ "$1" != newest ] || break
    "$pip" -m pip --python "$PY" install --quiet --no-index --no-deps --no-compile "$wanted" >/dev/null 2>&1 || continue
    return
  done
  "$UV" pip install "${options[@]}" --torch-backend cpu "$wanted" 2>/dev/null ||
    "$UV" pip install "${options[@]}" --no-cache "$wanted"
}

# The tests whose answers depend on torch's release.
TORCH_SUITES=(answers/gradcheck answers/lazy_tensors answers/split_derivatives api/modules api/modules_changed
  api/varlen_torch plan/import_order transforms/batched_gradients transforms/compile transforms/contexts
  transforms/custom_ops transforms/direct transforms/export transforms/first_calls transforms/flop_counter
  transforms/plain_export transforms/saved_programs transforms/transforms)

run_torch() {
  local version=${1:-} suite suites=()
  [[ $version =~ ^([0-9]+\.[0-9]+\.[0-9]+|newest|nightly)$ ]] || die "which release of torch? ./dev.sh torch 2.9.0"
  [ "$version" != nightly ] || [ -n "${TORCH_NIGHTLY_INDEX:-}" ] || die "TORCH_NIGHTLY_INDEX names no package index"
  shift
  VENV=.venv-torch-$version
  PY=$VENV/bin/python
  install_requirements dev
  install_packages
  install_torch_release "$version"
  say "torch $("$PY" -c 'import torch; print(torch.__version__)')"
  for suite in "${TORCH_SUITES[@]}"; do suites+=("tests-parity/${suite%/*}/test_${suite##*/}.py"); done
  OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" "$PY" -m pytest -n 2 --dist loadgroup "${suites[@]}" "$@"
}

# A release of MLX in place of the pinned one, and natten-mlx built for it, with the nanobind that goes with it.
install_mlx_release() {
  local wanted="mlx[cpu]==$1" options=(--quiet --no-config --python "$PY" --upgrade-package mlx)
  case $1 in
    newest) wanted="mlx[cpu]" ;;
    oldest) wanted="mlx[cpu]$("$PY" -c '
import tomllib
project = tomllib.load(open("packages/natten-mlx/pyproject.toml", "rb"))["project"]
print(next(line.removeprefix("mlx") for line in project["dependencies"] if line.startswith("mlx>=")))')"
      options+=(--resolution lowest-direct) ;;
  esac
  say "installing $wanted into $VENV/"
  "$UV" pip install "${options[@]}" "$wanted"
  nanobind=$("$PY" packages/natten-mlx/cmake/mlx_release.py --nanobind)  # none for releases without an extension
  [ -z "$nanobind" ] || "$UV" pip install --quiet --no-config --python "$PY" "nanobind==$nanobind"
  "$UV" pip install --quiet --no-deps --no-build-isolation --python "$PY" --reinstall-package natten-mlx \
    --config-settings "build-dir=build/mlx-$1" -e packages/natten-mlx
}

# The tests whose answers depend on MLX's release.
MLX_SUITES=(answers/lazy_tensors answers/layouts api/models_mlx api/modules api/varlen metal/mlx_host
  metal/nanobind_launches plan/nanobind plan/nanobind_ends plan/nanobind_guards tools/doctor transforms/compile
  transforms/export_mlx transforms/shapeless_mlx transforms/streams_mlx transforms/transforms_mlx)

run_mlx() {
  local version=${1:-} nanobind="" suite suites=()
  [[ $version =~ ^([0-9]+\.[0-9]+\.[0-9]+|oldest|newest)$ ]] || die "which release of MLX? ./dev.sh mlx 0.31.2"
  shift
  VENV=.venv-mlx-$version
  PY=$VENV/bin/python
  install_requirements dev build
  install_packages natten-mps
  add_torch
  install_mlx_release "$version"
  "$VENV/bin/natten-mlx" doctor
  for suite in "${MLX_SUITES[@]}"; do suites+=("tests-parity/${suite%/*}/test_${suite##*/}.py"); done
  [ -n "$nanobind" ] || suites+=(-k "not nanobind")
  OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" "$PY" -m pytest -n 2 --dist loadgroup "${suites[@]}" "$@"
}

run_training() {
  local out=demo-output package
  mkdir -p "$out"
  for package in natten-mps natten-mlx; do
    ".venv/bin/$package" demo train --record "$out/$package-train.json" --out "$out/$package-train.png" "$@"
  done
  "$PY" scripts/compare_training.py "$out/natten-mps-train.json" "$out/natten-mlx-train.json" --out "$out/train.png"
}

case "${1:-}" in
  demo)
    shift; set_up dev
    if [ "${1:-}" = train ]; then shift; run_training "$@"; else run_demo "$@"; fi ;;
  test)
    shift
    case " $* " in *" --all "*) set_up dev all ;; *) set_up dev ;; esac
    run_tests "$@" ;;
  check) set_up dev; check ;;
  build) shift; set_up_wheels; build_wheels "$@" ;;
  mlx-wheel) shift; set_up_wheels; "$PY" scripts/check_mlx_releases.py "$@" ;;
  macos-wheels) shift; set_up_wheels; "$PY" scripts/build_macos_wheels.py "$@" ;;
  check-wheel) shift; set_up_wheels; check_wheels "$@" ;;
  gate) shift; run_gate "$@" ;;
  check-files) set_up dev; check_files ;;
  lock) shift; find_uv; "$UV" run --quiet --no-project scripts/lock.py "$@" ;;
  docs) set_up dev; docs ;;
  bench)
    shift; set_up dev
    if [ "${1:-}" = --guard ]; then shift; exec "$PY" benchmarks/guard.py "$@"; fi
    exec "$PY" -m pytest benchmarks "$@" ;;
  metal) shift; set_up dev; exec "$PY" tests-parity/on_metal.py "$@" ;;
  clients) shift; run_clients "$@" ;;
  upstream)
    shift; set_up dev
    if [ "${1:-}" = signatures ]; then compare_signatures; else run_upstream "$@"; fi ;;
  torch) shift; run_torch "$@" ;;
  mlx) shift; run_mlx "$@" ;;
  -h | --help | help) usage ;;
  *) usage >&2; exit 2 ;;
esac
