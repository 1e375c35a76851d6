# Sourced by the scripts beside it: a temporary folder that is removed at the end, and python_with, which makes a
# virtual environment in it. With FINDINGS_VENV set, environments lie in that folder instead, one for each list of
# packages, and are used again.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# python_with NAME==VERSION ...: $python is then an interpreter that has these packages.
python_with() {
    local venv=$work/venv
    if [ -n "${FINDINGS_VENV:-}" ]; then
        venv=$FINDINGS_VENV/$({ python3 --version && printf '%s\n' "$@"; } | sha256sum | cut -c1-12)
    fi
    if [ ! -e "$venv/ready" ]; then
        python3 -m venv --clear "$venv"
        "$venv/bin/python" -m pip install -qq "$@"
        touch "$venv/ready"
    fi
    python=$venv/bin/python
}
