#!/usr/bin/env bash
# The same set-up as outside a VM; only make itself has to come from somewhere first.
set -euo pipefail
cd /vagrant
export DEBIAN_FRONTEND=noninteractive
if ! command -v make >/dev/null; then
    PACKAGES=make bash .ci/install-packages
fi
# As `sudo make setup` typed by the person who will log in: what it makes belongs to them.
SUDO_UID=$(stat -c %u Makefile) SUDO_GID=$(stat -c %g Makefile) make setup
