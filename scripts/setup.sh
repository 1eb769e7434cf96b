#!/usr/bin/env bash
# Builds the virtual environment that every make target runs in: system libraries, Python, uv,
# the packages of requirements.lock, heartcut itself. Returns at once if nothing has changed, and
# resumes after an interrupt.
#
#   VENV        folder of the environment                     (default: .venv)
#   PYTHON      command of the Python to build it from        (default: found on PATH)
#   FFCV_WHEEL  file of an ffcv wheel, docs/install.md        (default: ffcv is compiled)
set -euo pipefail
unset CDPATH VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH UV_SYSTEM_PYTHON UV_PYTHON

wheel=${FFCV_WHEEL:+$(realpath -m -- "$FFCV_WHEEL")}
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
venv=$(realpath -m -- "${VENV:-.venv}")
marker=$venv/heartcut-setup   # line 1: folders that it was made for; line 2: hash of its inputs
made_for="$root $venv"
python=""                     # the Python to build from, its version, and "yes" if it has headers
version=""
headers=""
uv=""

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
runs() { command -v -- "$1" >/dev/null && "$1" --version >/dev/null 2>&1; }
in_range() { [[ $1 =~ ^3\.1[123]$ ]]; }

# Print "3.11 yes": the version of a Python, and "yes" if C extensions can be built for it.
describe() {
    "$1" -c 'import os, sys, sysconfig
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
print("%d.%d %s" % (sys.version_info[:2] + ("yes" if os.path.exists(header) else "no",)))' 2>/dev/null
}

# Hash of the inputs of a finished environment: files, folders and Python's version.
fingerprint() {
    { cat requirements.lock pyproject.toml scripts/setup.sh; echo "$made_for $1"; } |
        sha256sum | cut -d ' ' -f 1
}

# Print the version of an environment that was made here, for the requested Python, and runs.
usable_version() {
    local place found wanted
    [[ -f $marker && -x $venv/bin/python ]] || return 1
    read -r place <"$marker" || return 1
    [[ $place == "$made_for" ]] || return 1
    found=$(describe "$venv/bin/python") || return 1
    found=${found% *}
    in_range "$found" || return 1
    if [[ -n ${PYTHON:-} ]]; then
        wanted=$(describe "$PYTHON") || return 1
        [[ $found == "${wanted% *}" ]] || return 1
    fi
    echo "$found"
}

is_complete() {
    local found
    found=$(usable_version) || return 1
    [[ $(sed -n 2p "$marker") == "$(fingerprint "$found")" ]]
}

find_python() {
    local name candidate found
    if [[ -n ${PYTHON:-} ]]; then
        found=$(describe "$PYTHON") || die "PYTHON=$PYTHON does not run (expected the command of a Python 3.11, 3.12 or 3.13)."
        in_range "${found% *}" || die "PYTHON=$PYTHON is Python ${found% *} (expected 3.11, 3.12 or 3.13)."
        python=$(command -v -- "$PYTHON") version=${found% *} headers=${found#* }
        return
    fi
    for name in python3.11 python3.12 python3.13 python3; do
        while read -r candidate; do
            found=$(describe "$candidate") || continue
            in_range "${found% *}" || continue
            # Take the first one, or a later one if only that one can build extensions.
            if [[ -z $python || ($headers == no && $found == *yes) ]]; then
                python=$candidate version=${found% *} headers=${found#* }
            fi
        done < <(type -aP "$name" || true)
    done
}

has_library() { pkg-config --exists "$1" 2>/dev/null; }
has_compiler() { command -v "${CXX:-g++}" >/dev/null || command -v c++ >/dev/null; }
has_ensurepip() { "${python:-python3}" -c 'import ensurepip, venv' 2>/dev/null; }
has_locked_ffcv() {
    compgen -G "$venv/lib/python3.*/site-packages/ffcv-$(sed -n 's/^ffcv==\([^ ]*\).*/\1/p' requirements.lock).dist-info" >/dev/null
}

# libturbojpeg0-dev in Debian and Ubuntu today; take the other name only if apt knows just that.
turbojpeg_package() {
    if ! apt-cache show libturbojpeg0-dev >/dev/null 2>&1 &&
        apt-cache show libturbojpeg-dev >/dev/null 2>&1; then
        echo libturbojpeg-dev
    else
        echo libturbojpeg0-dev
    fi
}

# Debian's names of the missing packages, one a line.
missing_packages() {
    if [[ -z $wheel ]] && ! has_locked_ffcv; then
        command -v pkg-config >/dev/null || echo pkg-config
        has_library opencv4 || has_library opencv || echo libopencv-dev
        has_library libturbojpeg || turbojpeg_package
        has_compiler || echo g++
        if [[ $headers == no && $python == /usr/bin/* ]]; then echo "python$version-dev"; fi
    fi
    if [[ -z $uv ]] && ! has_ensurepip; then
        if [[ $python == /usr/bin/* ]]; then
            echo "python$version-venv"
        else
            printf '%s\n' python3 python3-dev python3-venv
        fi
    fi
}

install_system_packages() {
    local missing as_root=() sudo="" install
    missing=$(missing_packages | paste -sd ' ')
    [[ -n $missing ]] || return 0
    [[ -e /etc/ssl/certs/ca-certificates.crt ]] || missing+=" ca-certificates"
    if ! command -v apt-get >/dev/null; then
        die "FFCV needs OpenCV 4 and TurboJPEG with their headers, pkg-config, a C++ compiler, and Python's headers and venv; the missing Debian packages are: $missing. Install their equivalents with this system's package manager, then run the same command again."
    fi
    if (($(id -u) != 0)); then
        command -v sudo >/dev/null && sudo="sudo "
        as_root=(sudo)
    fi
    install="${sudo}apt-get update && ${sudo}apt-get install -y --no-install-recommends"
    # sudo with a password needs a terminal.
    if (($(id -u) != 0)) &&
        { [[ -z $sudo ]] || ! { sudo -n true || : </dev/tty; } 2>/dev/null; }; then
        die "system packages are missing and installing them needs root. Run this line as root, then the same command again:
    $install $missing"
    fi
    say "installing system packages: $missing"
    as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120)
    "${as_root[@]}" update >&2 || say "apt-get update failed; continuing with the current package lists"
    missing=$(missing_packages | paste -sd ' ')   # the updated package lists have turbojpeg's name
    # shellcheck disable=SC2086
    "${as_root[@]}" install -y --no-install-recommends $missing >&2 ||
        die "the system packages could not be installed. Run this line as root, then the same command again:
    $install $missing"
    find_python
    missing=$(missing_packages | paste -sd ' ')
    [[ -z $missing ]] || die "apt-get installed the system packages, but these are not found: $missing. Check that no other pkg-config or Python is first on PATH ($(command -v pkg-config || true))."
}

# Remove only a folder that this script made.
clear_unusable() {
    if usable_version >/dev/null || [[ ! -e $venv ]]; then return; fi
    # Interrupted before there was a Python: continue.
    if [[ -f $marker && ! -e $venv/bin && $(<"$marker") == "$made_for" ]]; then return; fi
    if [[ ! -f $marker ]] && { [[ ! -d $venv ]] || [[ -n $(ls -A -- "$venv") ]]; }; then
        die "$venv was not made by set-up. Remove it, or choose another folder with VENV=FOLDER."
    fi
    say "$venv was made for another folder or Python; rebuilding it"
    rm -rf -- "$venv"
}

install_uv() {
    uv=$venv/.uv/bin/uv
    if runs "$uv"; then return; fi
    say "installing uv"
    "${python:-python3}" -m venv --clear "$venv/.uv" ||
        die "${python:-python3} cannot make a virtual environment for uv. Install uv, or choose another Python with PYTHON=COMMAND."
    "$venv/.uv/bin/python" -m pip install -q --disable-pip-version-check uv ||
        die "pip could not install uv. Check the network and pip's configuration, then run the same command again."
}

make_venv() {
    usable_version >/dev/null && return
    say "making $venv with Python ${version:-3.11 to 3.13}"
    "$uv" venv -q --allow-existing --prompt heartcut --python "${python:->=3.11,<3.14}" "$venv" ||
        die "no virtual environment could be made with ${python:-a Python 3.11, 3.12 or 3.13}. Install Python 3.11, 3.12 or 3.13, or choose one with PYTHON=COMMAND."
}

install_packages() {
    local python_flag=(--python "$venv/bin/python") quiet=-q failure
    if [[ -t 2 ]]; then quiet=""; fi   # a terminal shows the progress
    if [[ -n $wheel ]]; then
        "$uv" pip install -q "${python_flag[@]}" --no-deps "$wheel"
    fi
    say "installing the packages of requirements.lock (about 3 GB to download the first time)"
    "$uv" pip sync $quiet "${python_flag[@]}" --require-hashes --build-constraints requirements.lock \
        requirements.lock >&2
    "$uv" pip install -q "${python_flag[@]}" --no-deps --no-build-isolation --editable .
    # Importing ffcv takes seconds; loading its extension shows if a library is missing.
    failure=$("$venv/bin/python" -c 'import ctypes, glob, sysconfig
ctypes.CDLL(glob.glob(sysconfig.get_paths()["platlib"] + "/ffcv/_libffcv*.so")[0])' 2>&1) ||
        die "ffcv's extension does not load: ${failure##*$'\n'}. Install that library. If the system's libraries have changed since ffcv was compiled, run '$uv cache clean ffcv', remove $venv, and run the same command again."
}

if is_complete && [[ -z $wheel ]]; then exit 0; fi
if command -v flock >/dev/null; then   # a second make waits, and then has nothing to do
    exec 9<scripts/setup.sh
    flock 9
    if is_complete && [[ -z $wheel ]]; then exit 0; fi
fi

# uv does not read pip's settings; pass the two that are needed to reach a registry.
if [[ -n ${PIP_INDEX_URL:-} && -z ${UV_INDEX_URL:-} ]]; then
    export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}
fi
if [[ -n ${PIP_CERT:-} ]]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$PIP_CERT}; fi
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}
# Without this, ffcv's extension links all modules of OpenCV, and loads them at import.
export LDFLAGS="${LDFLAGS:+$LDFLAGS }-Wl,--as-needed"

[[ -z $wheel || -f $wheel ]] || die "FFCV_WHEEL=$FFCV_WHEEL is not a file. Pass the path of an ffcv wheel, or unset FFCV_WHEEL."
find_python
if runs uv; then uv=$(command -v uv); fi
install_system_packages
clear_unusable
mkdir -p -- "$venv"
echo "$made_for" >"$marker"   # removes the fingerprint: the environment is unfinished from here on
[[ -n $uv ]] || install_uv
make_venv
install_packages
version=$(usable_version)
printf '%s\n%s\n' "$made_for" "$(fingerprint "$version")" >"$marker"
say "done: $venv, Python $version"
