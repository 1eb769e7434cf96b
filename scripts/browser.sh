#!/usr/bin/env bash
# Installs the browser for the report's tests: Debian's Chromium, if that is possible. Without a
# browser only the tests that need it are skipped.
set -euo pipefail

command -v chromium >/dev/null || command -v chromium-browser >/dev/null && exit 0
say() { printf 'setup: %s\n' "$*" >&2; }
install="apt-get install -y --no-install-recommends chromium"
as_root=()
if (($(id -u) != 0)); then as_root=(sudo -n); fi
# Ubuntu has Chromium only as a snap, which most containers and CI machines cannot run.
if ! grep -qs '^ID=debian' /etc/os-release || ! "${as_root[@]}" true 2>/dev/null; then
    say "Chromium is not installed, so tests of the report in a browser are skipped. On Debian, run: $install"
    exit 0
fi
say "installing Chromium for the tests of the report"
apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120)
"${as_root[@]}" "${apt[@]}" update >/dev/null 2>&1 || true
"${as_root[@]}" "${apt[@]}" install -y --no-install-recommends chromium >/dev/null ||
    say "Chromium could not be installed, so tests of the report in a browser are skipped"
