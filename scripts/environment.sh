# Sourced by the scripts beside it: goes to the project's root and puts a virtual environment with the pinned
# packages on PATH, creating .venv at the first call. Arguments of install(): further arguments for pip.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $*" >&2; exit 2; }

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed and none was found on PATH"
}

# install NAME [PIP ARGUMENT ...]: once for each NAME and state of the files that say what is to be installed.
install() {
  local name=$1 stamp python
  shift
  if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    python=$(find_python)
    echo "creating .venv with $("$python" --version)"
    "$python" -m venv --clear .venv \
      || fail "$python cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv"
  fi
  stamp=".venv/installed-$name-$(cat requirements.txt pyproject.toml | cksum | tr ' ' '-')"
  if [ ! -e "$stamp" ]; then
    echo "installing the pinned packages into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt "$@" \
      || fail "pip could not install the packages (see above); is a package index reachable?"
    touch "$stamp"
  fi
  export PATH="$PWD/.venv/bin:$PATH"
}
