#!/bin/sh
# Make .venv: exactly the packages that requirements.lock names, plus this project in editable form.
#
# Does nothing when that is already so. Needs a Python that the lock file supports and nothing else; PYTHON=/path/to/it
# chooses one. The stamp is written last, so a set-up that was interrupted is made good by the next call.
set -eu
cd "$(dirname "$0")/.."
. tools/messages.sh

root=$(pwd)
venv=$root/.venv
stamp=$venv/.setup-stamp
unfinished=$venv/.setup-unfinished
oldest_minor=11
newest_minor=13

# The path belongs to the key: the scripts in .venv/bin and the editable install name it. A moved clone starts afresh.
wanted=$({ cat requirements.lock setup.cfg pyproject.toml tools/setup.sh; echo "$root"; } | sha256sum | cut -d ' ' -f 1)
if [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

# supports_lock INTERPRETER: is it a Python of a version that every package of the lock file has a build for?
supports_lock() {
    "$1" -c "import sys; sys.exit(not (3, $oldest_minor) <= sys.version_info[:2] <= (3, $newest_minor))" 2>/dev/null
}

# Not every python3 can make environments: Debian keeps ensurepip in a package of its own.
makes_environments() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

# Print the first supported interpreter that can make environments, else the first supported one, else nothing.
find_interpreter() {
    first_supported=
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        supports_lock "$candidate" || continue
        if makes_environments "$candidate"; then
            echo "$candidate"
            return
        fi
        first_supported=${first_supported:-$candidate}
    done
    echo "$first_supported"
}

create_environment() {
    interpreter=$(find_interpreter)
    if [ -z "$interpreter" ]; then
        found=$(${PYTHON:-python3} --version 2>&1) || found="no usable ${PYTHON:-python3}"
        fail "Python 3.$oldest_minor to 3.$newest_minor is needed, found: $found." \
            "Install one, or name it: make PYTHON=/path/to/python3.$oldest_minor ..."
    fi
    if ! makes_environments "$interpreter"; then
        package=$("$interpreter" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')
        if can_apt_install; then
            say "installing $package, which $interpreter needs to make an environment"
            apt_install "$package" || true
        fi
        makes_environments "$interpreter" || fail \
            "$interpreter has no venv and ensurepip modules, so it cannot make an environment." \
            "Install them: apt-get install $package"
    fi
    say "making .venv with $("$interpreter" --version 2>&1)"
    "$interpreter" -m venv --clear "$venv"
}

# Is there an environment of this path whose interpreter still runs and that has pip or uv to go on with?
# One that was left in the middle of an installation is not usable: uv takes a package that it had copied halfway for an
# installed one. Making it anew costs seconds, as uv keeps what it has downloaded.
is_usable_environment() {
    [ ! -e "$unfinished" ] && [ -f "$venv/bin/activate" ] && grep -qF "$venv" "$venv/bin/activate" && supports_lock "$venv/bin/python" &&
        { has_installer || "$venv/bin/python" -m pip --version >/dev/null 2>&1; }
}

has_installer() {
    "$venv/bin/uv" --version >/dev/null 2>&1 && "$venv/bin/python" -c 'import setuptools' 2>/dev/null
}

# uv and setuptools come from the lock file too: pip takes those two entries, with their hashes, and uv does the rest.
install_installer() {
    entries=$venv/installer-requirements.txt
    awk '/^[A-Za-z0-9]/ { wanted = ($0 ~ /^(uv|setuptools)==/) } wanted' requirements.lock >"$entries"
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r "$entries"
}

# uv does not read pip's configuration: a machine that has a package mirror or certificates set up for pip has them for
# uv as well. What is set for uv itself comes first.
adopt_pip_settings() {
    if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
        mirror=$(pip_setting index-url)
        [ -z "$mirror" ] || export UV_DEFAULT_INDEX="$mirror"
    fi
    if [ -z "${SSL_CERT_FILE:-}" ]; then
        certificates=$(pip_setting cert)
        [ -z "$certificates" ] || export SSL_CERT_FILE="$certificates"
    fi
}

# Print a setting of pip, whether it stands in a file or in the environment (which is listed first, and which wins).
# `pip config get` reads one file only.
pip_setting() {
    "$venv/bin/python" -m pip --disable-pip-version-check config list 2>/dev/null |
        sed -n "s/^\(:env:\|global\)\.$1='\(.*\)'\$/\2/p" | head -n 1
}

# The environment is named, and UV_SYSTEM_PYTHON is taken away: container images set it, and it would win.
uv_pip() {
    action=$1
    shift
    env -u UV_SYSTEM_PYTHON UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-120}" \
        "$venv/bin/uv" pip "$action" --quiet --python "$venv/bin/python" "$@"
}

[ "$(uname -s)" = Linux ] || fail "the lock file is for Linux, this is $(uname -s)." \
    "Use a Linux machine or container; docs/development.md says which are supported."

# --clear would empty the folder that a link leads to, which is another clone's environment.
[ ! -L "$venv" ] || fail ".venv is a link to $(cd -P "$venv" && pwd), whose packages are not those of this clone." \
    "Remove the link for an environment of this clone's own: rm .venv"

rm -f "$stamp"
is_usable_environment || create_environment
touch "$unfinished"
has_installer || install_installer
adopt_pip_settings

say "installing the packages of requirements.lock (a few minutes when they must be downloaded)"
# pyspark, for one, comes as source only. Without build isolation it is built with the setuptools of the lock file.
# Bytecode is compiled here, once (20 s): where PYTHONDONTWRITEBYTECODE is set, as in many containers, every process
# would compile again what it imports, and `import tensorflow` takes 5.1 s instead of 1.8 s.
uv_pip sync --require-hashes --no-build-isolation --compile-bytecode requirements.lock
uv_pip install --no-deps --no-build-isolation --editable .
tools/caches.sh

rm -f "$unfinished"
echo "$wanted" >"$stamp.new"
mv "$stamp.new" "$stamp"
say "set-up done"
