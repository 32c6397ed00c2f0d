# Makes .venv and installs the gateway into it, once: later runs find it current and go on at once.
#
# To be sourced by a bash script that has set `extra` to the extra of setup.cfg it needs. Leaves the shell in the
# checkout with its programs in .venv/bin. Needs Python 3.11 or newer; AIZEN_PYTHON names one that is not on PATH.

set -euo pipefail
CDPATH='' cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

# Run it, since a name on PATH may be a launcher whose version is not there.
is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
has_venv() { "$1" -c 'import venv, ensurepip' >/dev/null 2>&1; }

# Prints a Python that can make environments, or failing that, one that cannot.
find_python() {
    local name recent='' names=(python3.13 python3.12 python3.11 python3 python)
    [ -z "${AIZEN_PYTHON:-}" ] || names=("$AIZEN_PYTHON")
    for name in "${names[@]}"; do
        is_recent "$name" || continue
        if has_venv "$name"; then
            echo "$name"
            return
        fi
        recent=${recent:-$name}
    done
    echo "$recent"
}

# Debian and its kin keep the venv module in a package of its own.
add_venv() {
    local package
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    command -v apt-get >/dev/null || fail "$1 lacks the venv and ensurepip modules; install them, or set AIZEN_PYTHON"
    [ "$(id -u)" = 0 ] || fail "$1 lacks the venv module; run: sudo apt-get install $package"
    echo "Installing $package ..." >&2
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install --yes --no-install-recommends "$package"; } >/dev/null ||
        fail "$package cannot be installed; install it, or set AIZEN_PYTHON to another Python"
    has_venv "$1" || fail "$1 lacks the venv module even with $package; set AIZEN_PYTHON to another Python"
}

make_venv() {
    local python
    python=$(find_python)
    [ -n "$python" ] || fail "needs Python 3.11 or newer and found none${AIZEN_PYTHON:+ at $AIZEN_PYTHON}; \
install it, or set AIZEN_PYTHON to its path"
    has_venv "$python" || add_venv "$python"
    rm -rf .venv
    "$python" -m venv .venv
}

# An environment is bound to its place and to its Python, and holds what setup.cfg said when it was made.
stamp() { echo "$PWD"; .venv/bin/python -V; cksum <setup.cfg; }

install() {
    # Whatever the caller's is: PostgreSQL may have to run as an account that is not ours and can read it.
    umask 022
    [ "$(head -n 1 .venv/place 2>/dev/null)" = "$PWD" ] && is_recent .venv/bin/python || make_venv
    echo "$PWD" >.venv/place
    echo "Installing into .venv (once; a minute at most on a fast line) ..." >&2
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-input --editable ".[$extra]" >&2
    stamp >".venv/installed-$extra"
}

is_current() {
    local now have
    now=$(stamp 2>/dev/null) || return
    for have in bench test dev; do # each includes those after it
        [ "$now" != "$(cat ".venv/installed-$have" 2>/dev/null)" ] || return 0
        [ "$have" != "$extra" ] || return 1
    done
}

if ! is_current; then
    # Two scripts started at once take turns, where the system has the program for it.
    exec 9<setup.cfg
    if command -v flock >/dev/null; then flock 9; fi
    is_current || (install)
    exec 9<&-
fi
