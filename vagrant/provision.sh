#!/usr/bin/env bash
# The same set-up as outside a VM, and what only a machine made for it should have. Twice changes nothing.
set -euo pipefail
cd /vagrant
export DEBIAN_FRONTEND=noninteractive

# make has to come from somewhere first; bash-completion is for the person who logs in.
missing=
for package in make bash-completion; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=" $package"
done
[ -z "$missing" ] || PACKAGES=$missing bash .ci/install-packages

# As `sudo make setup` typed by the person who will log in: what it makes belongs to them.
SUDO_UID=$(stat -c %u Makefile) SUDO_GID=$(stat -c %g Makefile) make setup

# Write standard input to a file, if it is not its content already.
write() {
    local text
    text=$(cat)
    [ "$text" = "$(cat "$1" 2>/dev/null)" ] || install -D -m 0644 <(printf '%s\n' "$text") "$1"
}

# For playing around; a lab needs none of them, and whatever its rules need the kernel loads by itself.
write /etc/modules-load.d/kproxy.conf <<'END'
vxlan
ip_vs
sctp
END
modprobe --all vxlan ip_vs sctp

kproxy completion bash | write /usr/local/share/bash-completion/completions/kproxy
if command -v zsh >/dev/null; then
    kproxy completion zsh | write /usr/local/share/zsh/site-functions/_kproxy
fi
if command -v fish >/dev/null; then
    kproxy completion fish | write /etc/fish/completions/kproxy.fish
fi

# The lab's API is that of a Kubernetes of today: an older kubectl would mislead.
has_kubectl() {
    command -v kubectl >/dev/null
}
candidate=$(LC_ALL=C apt-cache policy kubernetes-client | awk '$1 == "Candidate:" {print $2}')
if ! has_kubectl && [ -n "$candidate" ] && dpkg --compare-versions "$candidate" ge 1.30; then
    PACKAGES=kubernetes-client bash .ci/install-packages
fi
kubectl=
if ! has_kubectl; then
    kubectl="
kubectl: this Debian has no version of 1.30 or later; https://kubernetes.io/docs/tasks/tools/ says how to get one."
fi

write /etc/motd <<END

kproxy: a kube-proxy one can see through, and a lab to run it in. To begin with:

  sudo kproxy lab up
  sudo kproxy apply -f /vagrant/manifests/nodeport-local
  sudo kproxy verify
$kubectl
END
