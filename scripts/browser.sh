#!/usr/bin/env bash
# The browser that the report is tested in: Debian's Chromium, installed where that is possible.
# Without one the tests that need it are skipped, and nothing else.
set -euo pipefail

command -v chromium >/dev/null || command -v chromium-browser >/dev/null && exit 0
say() { printf 'setup: %s\n' "$*" >&2; }
install="apt-get install -y --no-install-recommends chromium"
as_root=()
if (($(id -u) != 0)); then as_root=(sudo -n); fi
# Ubuntu has Chromium as a snap only, which containers and CI machines mostly cannot run.
if ! grep -qs '^ID=debian' /etc/os-release || ! "${as_root[@]}" true 2>/dev/null; then
    say "there is no Chromium, so the report is not tested in a browser; on Debian: $install"
    exit 0
fi
say "installing Chromium, to test the report in"
apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120)
"${as_root[@]}" "${apt[@]}" update >/dev/null 2>&1 || true
"${as_root[@]}" "${apt[@]}" install -y --no-install-recommends chromium >/dev/null ||
    say "Chromium could not be installed, so the report is not tested in a browser"
