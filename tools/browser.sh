#!/bin/sh
# Install Chromium and its driver for the browser tests where that is simple: root on Debian. Never fails.
#
# Usage: browser.sh [OS-RELEASE-FILE]   (default: /etc/os-release)
#
# Without them the browser tests skip and say so. Ubuntu's packages only fetch a snap, which containers cannot run.
set -eu
cd "$(dirname "$0")/.."
. tools/messages.sh

has_browser() {
    command -v chromium >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1
}

has_browser && exit 0
if can_apt_install && grep -q '^ID=debian' "${1:-/etc/os-release}" 2>/dev/null; then
    say "installing chromium and chromium-driver for the browser tests"
    apt_install chromium chromium-driver || true
fi
has_browser || say "no chromium with chromedriver on PATH: the browser tests will skip"
