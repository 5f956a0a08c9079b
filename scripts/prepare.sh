#!/bin/sh
# Makes ready what `make demo` and `make test` need: the system's tools and the virtual
# environment given as the first argument; with a second one, "programs", also the real software
# that tests talk to. Done again it only looks and is through in a moment.
# It installs system packages only as root and only those that are missing; otherwise it names
# them, once. It never changes anything outside the virtual environment but by apt-get, and no
# service that comes with a package is started or enabled.
set -eu

venv=$1
wanted=${2:-}
PATH=$PATH:/usr/sbin:/sbin

say() { echo "prepare: $*" >&2; }
fail() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# --- Python -------------------------------------------------------------------------------

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if have "$candidate" && recent "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed, as ${PYTHON:-python3} in PATH or given by PYTHON=..."
}

can_import() { "$python" -c "import $1" 2>/dev/null; }

has_headers() {
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
}

# "python3.11" for Debian's interpreter of that name: the stem of its packages.
python_stem() { "$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])'; }

# --- Debian packages ----------------------------------------------------------------------

is_root() { [ "$(id -u)" = 0 ]; }

# Prints the packages behind the tools that are missing: of the lab, of the environment, of the
# compiler. An interpreter that Debian did not build brings its own venv and headers.
lab_packages() {
    have iptables || echo iptables
    have nft || echo nftables
    have ip || echo iproute2
    have conntrack || echo conntrack
}

tls_packages() {
    [ "$wanted" = programs ] || return 0
    have openssl || echo openssl
}

venv_packages() {
    can_import ensurepip || echo "$(python_stem)-venv"
}

compiler_packages() {
    have gcc || echo gcc
    [ -e /usr/include/stdio.h ] || echo libc6-dev
    has_headers || echo "$(python_stem)-dev"
}

# CPython's own tests: Debian keeps them apart from its interpreter.
suite_packages() {
    [ "$wanted" = programs ] || return 0
    can_import test.test_socket || echo "lib$(python_stem)-testsuite"
}

# A redis server by another name is in redis-tools, without the service.
program_packages() {
    [ "$wanted" = programs ] || return 0
    have redis-server || have redis-check-rdb || echo redis-tools
    have sshd || echo openssh-server
    have curl || echo curl
    have natpmpc || echo natpmpc
}

missing_packages() {
    echo $(lab_packages) $(tls_packages) $(venv_packages) $(compiler_packages) \
        $(suite_packages) $(program_packages)
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" \
        </dev/null >"$log" 2>&1
}

# What is installed must not begin to serve, neither now nor when the machine starts again.
policy=/usr/sbin/policy-rc.d

without_services() {
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 130' INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    "$@"
}

disable_sshd() {
    for unit in ssh.service ssh.socket; do
        ! have systemctl || systemctl --quiet disable "$unit" >>"$log" 2>&1 || true
    done
    ! have update-rc.d || update-rc.d ssh disable >>"$log" 2>&1 || true
}

# The package lists of a fresh machine are empty or old: fetch them when the first try fails.
install_packages() {
    say "installing $* (apt-get)"
    log=$(mktemp)
    had_sshd=$(command -v sshd || true)
    if ! without_services apt_install "$@"; then
        apt-get update -q </dev/null >>"$log" 2>&1 || true
        without_services apt_install "$@" ||
            { tail -n 5 "$log" >&2; say "apt-get could not install: $*"; }
    fi
    [ -n "$had_sshd" ] || ! have sshd || disable_sshd
    rm -f "$log"
}

# The programs apart: a machine that has not all of them to offer gets the rest all the same.
system_tools() {
    for group in missing_packages program_packages; do
        packages=$(echo $($group))
        if [ -n "$packages" ] && is_root && have apt-get; then
            install_packages $packages
        fi
    done
    [ -z "$(missing_packages)$(program_packages)" ] || explain_missing
}

explain_missing() {
    packages=$(venv_packages)
    [ -z "$packages" ] || fail "$python cannot make virtual environments; as root: apt-get install $packages"
    packages=$(echo $(lab_packages))
    [ -z "$packages" ] || say "without them there is no lab of NATs; as root: apt-get install $packages"
    [ -z "$(tls_packages)" ] || say "the tests of TLS will fail; as root: apt-get install openssl"
    packages=$(echo $(compiler_packages))
    [ -z "$packages" ] || say "python-iptables cannot be compiled; as root: apt-get install $packages"
    packages=$(echo $(suite_packages))
    [ -z "$packages" ] || say "CPython's own tests are left out; as root: apt-get install $packages"
    packages=$(echo $(program_packages))
    [ -z "$packages" ] || say "some tests will be left out; as root: apt-get install $packages"
}

# --- the virtual environment --------------------------------------------------------------

wanted_extras() {
    if [ -z "$(compiler_packages)" ]; then echo gateway,test; else echo test; fi
}

# The stamp holds the extras that were installed; it is as old as the last good installation.
up_to_date() {
    [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$extras" ] || return 1
    for source in setup.py pyproject.toml scripts/prepare.sh; do
        [ "$stamp" -nt "$source" ] || return 1
    done
    same_python && "$venv/bin/python" -c 'import tox, gevent' 2>/dev/null
}

same_python() { [ "$("$venv/bin/python" --version 2>&1)" = "$("$python" --version)" ]; }

install_venv() {
    say "installing into $venv with $("$python" --version)"
    rm -f "$stamp"
    same_python || "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check \
        -e ".[$extras]" 'tox>=4.11' </dev/null
    echo "$extras" >"$stamp"
}

cd "$(dirname "$0")/.."
python=$(find_python)
stamp=$venv/extras
system_tools
extras=$(wanted_extras)
up_to_date || install_venv
