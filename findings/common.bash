# Sourced by the scripts beside it. It makes a temporary folder that is removed at the end, and gives one function.
# With FINDINGS_VENV set, environments lie in that folder instead, one for each list of packages, and are used again.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# python_with NAME==VERSION ...: $python is then an interpreter with these packages, and we are in the temporary folder.
python_with() {
    local key venv
    key=$({ python3 --version && printf '%s\n' "$@"; } | sha256sum | cut -c1-12)
    venv=$(realpath -m "${FINDINGS_VENV:-$work}")/$key
    if [ ! -e "$venv/ready" ]; then
        python3 -m venv --clear "$venv"
        "$venv/bin/python" -m pip install -qq "$@"
        touch "$venv/ready"
    fi
    python=$venv/bin/python
    cd "$work"
}
