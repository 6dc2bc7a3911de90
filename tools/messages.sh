# Functions that the scripts of this folder share: what they say, and the one way they install a system package.

say() {
    echo "mirrorspark: $*" >&2
}

# fail WHAT [WHAT-TO-DO ...]: one line each, then exit status 1.
fail() {
    for line in "$@"; do
        say "$line"
    done
    exit 1
}

is_root() {
    [ "$(id -u)" = 0 ]
}

# Only Debian and what descends from it (Ubuntu among others) has apt-get.
can_apt_install() {
    is_root && command -v apt-get >/dev/null 2>&1
}

# apt_install PACKAGE ...: bounded in time, asks nothing, shows apt's own words only when it fails.
apt_install() {
    log=$(mktemp)
    if timeout 120 apt-get -o Acquire::Retries=2 update >"$log" 2>&1 &&
        DEBIAN_FRONTEND=noninteractive timeout 420 apt-get -o Acquire::Retries=2 -o DPkg::Lock::Timeout=60 \
            install --yes --no-install-recommends "$@" >"$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    tail -n 5 "$log" >&2
    rm -f "$log"
    return 1
}
