#!/usr/bin/env bash
# install.sh PYTHON VENV EXTRA: make the virtual environment if there is none, and install Fibration with an extra.
set -euo pipefail
python=$1 venv=$2 extra=$3

"$python" - <<'CHECK' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"Fibration needs Python 3.11 or later; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12 ...")
CHECK

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    # Debian splits `venv` off its Python. Without it: borrow the pip that is there, or ask apt for the missing part.
    if "$python" -c "import ensurepip" 2>/dev/null; then
        "$python" -m venv "$venv"
    elif "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m venv --without-pip "$venv"
        "$python" -m pip --python "$venv/bin/python" install --quiet pip
    elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
        "$python" -m venv "$venv"
    else
        echo "This Python can make no virtual environment with pip. Install Debian's python3-venv, then call again." >&2
        exit 1
    fi
fi

# The build backend is pinned like everything else, so no isolated build environment fetches another one.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[$extra]"
