# Sourced by the commands beside it. Leaves `root` (the repository), `python` (that of .venv) and `say`, and makes
# sure that .venv holds what requirements.txt and pyproject.toml ask for.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

say() { printf '%s\n' "$*"; }
fail() { printf '%s\n' "$*" >&2; exit 1; }

supported='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
    if "$candidate" -c "$supported" >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  fail "No Python 3.11, 3.12 or 3.13 with venv found (tried: ${PYTHON:-python3.11 python3.12 python3.13 python3 python})." \
    "Install one, or name it: PYTHON=/path/to/python3.12 ci/book"
}

# What .venv was made for: any change of it makes .venv stale. The folder is part of it, because an environment that
# was moved still points to the old place.
wanted() { (cd "$root" && cat requirements.txt pyproject.toml && printf '%s\n' "$root") | sha256sum | cut -d ' ' -f 1; }

install() {
  local stamp="$root/.venv/made-for" want
  if [[ -L "$root/.venv" ]]; then return; fi # a link leads to somebody else's environment: used, never changed
  want="$(wanted)"
  if [[ -f "$stamp" && "$(<"$stamp")" == "$want" ]] && "$python" -c '' 2>/dev/null; then return; fi
  if [[ ! -f "$stamp" ]] || ! "$python" -c "$supported" 2>/dev/null; then
    # no stamp: never finished, so nothing in it can be trusted
    local base
    base="$(find_python)"
    say "Making .venv with $base (once; a few minutes, about 2 GB)"
    "$base" -m venv --clear "$root/.venv"
  else
    say "Requirements changed: bringing .venv up to date"
    rm "$stamp"
  fi
  (
    cd "$root"
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    "$python" -m pip install -qq -r requirements.txt
    # torch for CUDA brings the Triton that it is made for; any other needs one for the tests of the kernels alone
    if "$python" -c 'import sys, torch; sys.exit(sys.platform != "linux" or torch.version.cuda is not None)'; then
      "$python" -m pip install -qq 'triton>=3.9,<4' || say "No Triton for this machine: its tests will be skipped."
    fi
    "$python" -m pip install -qq --no-deps -e .
  )
  printf '%s\n' "$want" >"$stamp"
}

# One at a time, where the system has `flock`: two commands started together would install over each other.
mkdir -p "$root/_build"
if command -v flock >/dev/null; then
  exec 9>"$root/_build/.install.lock"
  flock 9
  install
  exec 9>&-
else
  install
fi

# A browser for the tests that look at the site, where Debian's packages can be had: elsewhere they say what is missing.
install_browser() {
  if command -v chromium >/dev/null || [[ "$(id -u)" != 0 ]] || ! command -v apt-get >/dev/null; then return; fi
  say "Installing Chromium for the tests of the site (once)"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null 2>&1 ||
    say "No Chromium to be had: the tests of the site will be skipped."
}
